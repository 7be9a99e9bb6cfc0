"""What CLIP is shown of a mask: a square of the frame around it, with everything else dimmed to black.

The square is cut as torchvision's `roi_align(aligned=False)` cuts it, of which this is a version on grid_sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.nn import functional as F

_SEEN = 0.5
"""A pixel belongs to a mask above this probability."""


def mask_crops(
    frames: torch.Tensor, masks: torch.Tensor, size: int, centred: bool = False, hard: bool = False
) -> Iterator[tuple[int, torch.Tensor]]:
    """For each mask that is seen in any frame: its number and its crops `[n, 3, size, size]`, 0 to 255.

    The crop is the frame times the mask's probability; the square's side is the longer one of the mask's box. One mask
    is done at a time, so that memory does not grow with their number.

    Args:
        frames: `[T, 3, H, W]`, uint8 or float.
        masks: logits `[Q, T, h, w]`, scaled to the frames bilinearly.
        centred: the square shares the box's centre; else, as published, its top left corner.
        hard: the frame times 0 or 1; else, as published, times the probability.
    """
    pictures = frames.float()
    for number, logits in enumerate(masks):
        full = F.interpolate(logits[None].float(), size=frames.shape[-2:], mode="bilinear", align_corners=False)
        soft = full[0].sigmoid()
        seen = (soft > _SEEN).flatten(1).any(1)
        if seen.any():
            where = squares(boxes(soft[seen] > _SEEN), centred)
            shown = (soft[seen] > _SEEN).float() if hard else soft[seen]
            both = cut(torch.cat([pictures[seen], shown[:, None]], dim=1), where, size)
            yield number, both[:, :3] * both[:, 3:]


def boxes(masks: torch.Tensor) -> torch.Tensor:
    """Tight boxes (x0, y0, x1, y1), the ends exclusive, of masks `[N, H, W]` that are not empty: `[N, 4]`."""
    columns, rows = masks.any(1).int(), masks.any(2).int()
    first = [line.argmax(1) for line in (columns, rows)]
    last = [line.shape[1] - line.flip(1).argmax(1) for line in (columns, rows)]
    return torch.stack([*first, *last], dim=1)


def squares(boxes: torch.Tensor, centred: bool) -> torch.Tensor:
    """(x, y, side) of each box `[N, 4]`, in float: `[N, 3]`; a square may reach out of the picture."""
    corner, extent = boxes[:, :2].float(), (boxes[:, 2:] - boxes[:, :2]).float()
    side = extent.amax(1, keepdim=True)
    if centred:
        corner = corner + (extent - side) / 2
    return torch.cat([corner, side], dim=1)


def cut(pictures: torch.Tensor, where: torch.Tensor, size: int) -> torch.Tensor:
    """Squares (x, y, side) `[N, 3]` of `[N, C, H, W]` at `[N, C, size, size]`; outside the picture lies 0.

    A cell is the mean of a grid of bilinear samples, of ceil(side / size) to each side; a picture's coordinates count
    from the centre of its first pixel.
    """
    out = pictures.new_zeros(len(pictures), pictures.shape[1], size, size)
    per_cell = [max(1, math.ceil(side / size)) for side in where[:, 2].tolist()]
    for samples in sorted(set(per_cell)):
        rows = torch.tensor([i for i, n in enumerate(per_cell) if n == samples], device=pictures.device)
        out[rows] = _cut_alike(pictures[rows], where[rows], size, samples)
    return out


def _cut_alike(pictures: torch.Tensor, where: torch.Tensor, size: int, samples: int) -> torch.Tensor:
    height, width = pictures.shape[-2:]
    steps = (torch.arange(size * samples, device=where.device) + 0.5) / (size * samples)
    x, y = (where[:, i, None] + where[:, 2, None] * steps for i in (0, 1))  # [N, size * samples]
    grid = torch.stack(
        [
            (2 * x / (width - 1) - 1)[:, None].expand(-1, len(steps), -1),
            (2 * y / (height - 1) - 1)[:, :, None].expand(-1, -1, len(steps)),
        ],
        dim=-1,
    )
    taken = F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=True)
    inside = ((y >= -1) & (y <= height))[:, None, :, None] & ((x >= -1) & (x <= width))[:, None, None]
    return F.avg_pool2d(taken * inside, samples)
