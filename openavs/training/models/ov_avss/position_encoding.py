"""Positions: a sine code of (frame, row, column) for the decoder's memory, a learned one for the sound's time axis."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

_TEMPERATURE = 10_000.0


def sine_3d(size: tuple[int, int, int], tokens: torch.Tensor) -> torch.Tensor:
    """The code `[frames * height * width, d]` of `tokens` `[..., d]`; `size` is (frames, height, width).

    Mask2Former for video: rows and columns share the channels half and half, the frame's code is added over all of
    them; each axis runs up to 2 pi whatever its length.
    """
    channels = tokens.shape[-1]
    shares = (channels, channels // 2, channels // 2)
    time, rows, columns = (_sines(n, share, tokens.device) for n, share in zip(size, shares, strict=True))
    plane = torch.cat(
        [rows[:, None].expand(-1, size[2], -1), columns[None].expand(size[1], -1, -1)], dim=-1
    )  # [height, width, channels]
    return (time[:, None, None] + plane).flatten(0, 2).to(tokens.dtype)


def interpolate_positions(table: torch.Tensor, frames: int) -> torch.Tensor:
    """A learned table `[positions, channels]` for another number of frames: as it is, or interpolated linearly.

    The first frame keeps the first position and the last the last, so a clip of any length spans what was learned.
    """
    if len(table) == frames:
        return table
    return F.interpolate(table.T[None], size=frames, mode="linear", align_corners=True)[0].T


def _sines(length: int, channels: int, device: torch.device) -> torch.Tensor:
    """Sine and cosine in turn of the places 1 to `length`, scaled to 2 pi: `[length, channels]` in float32."""
    place = torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + 1e-6) * (2 * math.pi)
    pair = torch.arange(channels, dtype=torch.float32, device=device).div(2, rounding_mode="floor")
    angle = place[:, None] / _TEMPERATURE ** (2 * pair / channels)
    return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1)
