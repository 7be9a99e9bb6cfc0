"""What CLIP is shown of a mask: a square of the frame around it, with everything else dimmed to black.

The square is cut as torchvision's `roi_align(aligned=False)` cuts it, of which this is a version on grid_sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from openavs.errors import InputError
from openavs.models.device import resolve_device
from openavs.models.hub import load_pretrained, load_processor, resolve

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


TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    *(
        template.replace("SIZE", size)
        for size in ("small", "medium", "large")
        for template in (
            "a photo of a SIZE {}.",
            "This is a photo of a SIZE {}.",
            "There is a SIZE {} in the scene.",
        )
    ),
)
"""The fourteen sentences of which a class name's embedding is the mean (ViLD's)."""


class MaskClassifier:
    """A frozen CLIP. The embedding of a class name is computed once, whichever vocabularies it is part of.

    Args:
        model: reference of a CLIPModel checkpoint with its tokenizer.
        device: where it runs; float32 except on GPUs that compute bfloat16 natively.
        batch_size: crops (and sentences) that go through the model together.
        centred, hard: see `mask_crops`.
        offline: take the model from this disk only.
    """

    def __init__(
        self,
        model: str,
        device: torch.device | str,
        *,
        batch_size: int = 64,
        centred: bool = False,
        hard: bool = False,
        offline: bool = False,
    ) -> None:
        place = resolve_device(str(device))
        found = resolve(model, offline)
        self.device = place.device
        self.batch_size, self.centred, self.hard = batch_size, centred, hard
        self._clip: Any = load_pretrained(CLIPModel, found, place.dtype, place.device)
        self._tokenizer: Any = load_processor(AutoTokenizer, found)
        self._size: int = self._clip.config.vision_config.image_size
        self._names: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def classify(self, frames: torch.Tensor, masks: torch.Tensor, classes: Sequence[str]) -> torch.Tensor:
        """Probabilities `[Q, classes]` of each mask over the vocabulary; zeros for masks that are seen nowhere.

        A mask's logits are averaged over the frames in which it is seen, then the softmax is taken.

        Args:
            frames: uint8 `[T, 3, H, W]`.
            masks: logits `[Q, T, h, w]`.
        """
        texts = self.texts(classes)
        sums = torch.zeros(len(masks), len(classes), device=self.device)
        counts = torch.zeros(len(masks), 1, device=self.device)
        scale = self._clip.logit_scale.exp().float()  # 100 in OpenAI's checkpoints
        crops = mask_crops(frames.to(self.device), masks.to(self.device), self._size, self.centred, self.hard)
        for numbers, pixels in _batches(crops, self.batch_size):
            owners = torch.tensor(numbers, device=self.device)
            sums.index_add_(0, owners, scale * self._images(pixels) @ texts.T)
            counts.index_add_(0, owners, torch.ones(len(owners), 1, device=self.device))
        return torch.where(counts > 0, (sums / counts.clamp(min=1)).softmax(-1), 0.0)

    @torch.inference_mode()
    def texts(self, classes: Sequence[str]) -> torch.Tensor:
        """Unit vectors `[classes, d]`: each sentence's embedding normalised, their mean normalised again."""
        if not classes:
            raise InputError("a vocabulary has at least one class; give the names to choose from")
        for name in classes:
            if name not in self._names:
                self._names[name] = self._text(name)
        return torch.stack([self._names[name] for name in classes])

    def _text(self, name: str) -> torch.Tensor:
        sentences = [template.replace("{}", name) for template in TEMPLATES]
        tokens = self._tokenizer(sentences, padding=True, truncation=True, return_tensors="pt").to(self.device)
        features = self._clip.get_text_features(**tokens).pooler_output.float()
        return F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1)

    def _images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Unit vectors `[n, d]` of crops `[n, 3, size, size]` from 0 to 255."""
        mean, std = (torch.tensor(c, device=pixels.device)[:, None, None] for c in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        prepared = ((pixels / 255 - mean) / std).to(self._clip.dtype)
        return F.normalize(self._clip.get_image_features(pixel_values=prepared).pooler_output.float(), dim=-1)


def _batches(crops: Iterable[tuple[int, torch.Tensor]], size: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """The crops of several masks together, at most `size`, with the number of each crop's mask."""
    numbers: list[int] = []
    held: list[torch.Tensor] = []
    for number, own in crops:
        for crop in own:
            numbers.append(number)
            held.append(crop)
            if len(held) == size:
                yield numbers, torch.stack(held)
                numbers, held = [], []
    if held:
        yield numbers, torch.stack(held)
