"""Preprocessing of image bytes on any device: resizing with the same bytes as Pillow's, and normalization.

The reference processors of SAM and Grounding DINO resize uint8 images with Pillow. A float resize on the GPU differs
from it in the last bit, which is enough to move the edge of a mask. Pillow's bilinear filter is integer arithmetic
(weights of 22 fractional bits, rounding to uint8 after each of the two passes), so the same sums in int32 on the device
give the same bytes, without copying the frame back to the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from openavs.structures.types import ImageArray

_BITS = 22  # Pillow's: 32 bits, less 8 of the pixel, less 2 of headroom


def resize_bilinear(image: ImageArray, size: tuple[int, int], device: torch.device | str) -> torch.Tensor:
    """Resize `[H, W, 3]` to `size` (height, width) with antialiasing: uint8 `[h, w, 3]` on the device.

    On the CPU Pillow itself is used, which is faster there; elsewhere the frame is copied once, as bytes.
    """
    if torch.device(device).type == "cpu":
        small = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small))
    return resize_tensor(torch.from_numpy(np.ascontiguousarray(image)).to(device), size)


def resize_tensor(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize a uint8 tensor `[H, W, C]` on its device: columns first, then rows, as Pillow does."""
    for axis, length in ((1, size[1]), (0, size[0])):
        if image.shape[axis] != length:
            image = _resize_axis(image, axis, length)
    return image


def _resize_axis(image: torch.Tensor, axis: int, length: int) -> torch.Tensor:
    """Resize one axis as a sum over the filter's taps, one gathered image at a time to bound the memory."""
    positions, weights = _taps_on(image.device, image.shape[axis], length)
    shape = [1, 1, 1]
    shape[axis] = length
    total: torch.Tensor | int = 1 << (_BITS - 1)  # rounds to nearest
    for position, weight in zip(positions, weights, strict=True):
        rows = image.index_select(axis, position)
        total = total + rows.to(torch.int32) * weight.view(shape)
    assert isinstance(total, torch.Tensor)
    return (total >> _BITS).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _taps_on(device: torch.device, old: int, new: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cache the taps on a device, since all frames of a video need the same ones."""
    positions, weights = _taps(old, new)
    return torch.from_numpy(positions).to(device), torch.from_numpy(weights).to(device)


def _taps(old: int, new: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Compute the old samples of each new one and their fixed-point weights, `[taps, new]` each.

    A triangle filter, widened when shrinking, around the center of each new sample; the weights of one sample sum to
    one before rounding, so sums stay within int32.
    """
    scale = old / new
    support = max(scale, 1.0)
    center = (np.arange(new, dtype=np.float64) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), old)
    tap = np.arange(2 * math.ceil(support) + 1, dtype=np.int64)[:, None]
    distance = np.abs((tap + first - center + 0.5) * (1.0 / support))
    weight = np.where(first + tap < last, np.maximum(1.0 - distance, 0.0), 0.0)
    total = np.zeros(new)
    for row in weight:  # added in Pillow's order, which determines the last bit of the quotient
        total += row
    fixed = (0.5 + weight / total * (1 << _BITS)).astype(np.int32)
    fixed[weight == 0.0] = 0
    return np.minimum(first + tap, old - 1), fixed


def normalization_table(scale: float, mean: Sequence[float] | None, std: Sequence[float] | None) -> torch.Tensor:
    """Return the value of each byte of each channel, `[3, 256]` float32: `(byte * scale - mean) / std`."""
    values = np.arange(256, dtype=np.float64) * scale
    if mean is not None and std is not None:
        values = (values - np.asarray(mean, dtype=np.float64)[:, None]) / np.asarray(std, dtype=np.float64)[:, None]
    return torch.from_numpy(np.broadcast_to(values, (3, 256)).astype(np.float32))


def normalize_bytes(table: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Convert uint8 `[H, W, 3]` to float32 `[3, H, W]`, on the table's device."""
    channels = image.permute(2, 0, 1).to(table.device).long()
    return torch.stack([values[channel] for values, channel in zip(table, channels, strict=True)])
