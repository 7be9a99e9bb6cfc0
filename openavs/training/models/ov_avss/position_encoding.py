"""Position encodings: sines of (frame, row, column) for pixels, a learned table of times for audio."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

_TEMPERATURE = 10_000.0


def sine_3d(size: tuple[int, int, int], tokens: torch.Tensor) -> torch.Tensor:
    """Return the encodings `[frames * height * width, d]` for tokens `[..., d]`; `size` is (frames, height, width).

    As in Mask2Former for video: rows and columns have half of the channels each, and the encoding of the frame is added
    to all of them. Each axis is scaled to 2 pi, independent of its length.
    """
    channels = tokens.shape[-1]
    widths = (channels, channels // 2, channels // 2)
    time, rows, columns = (_sines(n, width, tokens.device) for n, width in zip(size, widths, strict=True))
    plane = torch.cat(
        [rows[:, None].expand(-1, size[2], -1), columns[None].expand(size[1], -1, -1)], dim=-1
    )  # [height, width, channels]
    return (time[:, None, None] + plane).flatten(0, 2).to(tokens.dtype)


def interpolate_positions(table: torch.Tensor, frames: int) -> torch.Tensor:
    """Interpolate a learned table `[positions, channels]` linearly to a number of frames.

    The first and the last frame keep the first and the last position, so a clip of any length spans the table.
    """
    if len(table) == frames:
        return table
    return F.interpolate(table.T[None], size=frames, mode="linear", align_corners=True)[0].T


def _sines(length: int, channels: int, device: torch.device) -> torch.Tensor:
    """Return alternating sines and cosines of the positions 1 to `length`, float32 `[length, channels]`."""
    position = torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + 1e-6) * (2 * math.pi)
    pair = torch.arange(channels, dtype=torch.float32, device=device).div(2, rounding_mode="floor")
    angle = position[:, None] / _TEMPERATURE ** (2 * pair / channels)
    return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1)
