"""Normalization of image bytes by one table look-up on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


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
