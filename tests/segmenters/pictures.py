"""Pictures and boxes for the segmenters' tests."""

from __future__ import annotations

import numpy as np

from openavs.types import Box, Image


def picture(height: int, width: int, seed: int = 0) -> Image:
    """Coloured blocks in noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    big = blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    image: Image = np.clip(big + rng.integers(-20, 20, big.shape), 0, 255).astype(np.uint8)
    return image


def some_boxes(height: int, width: int, count: int, seed: int = 0) -> list[Box]:
    """Boxes with fractional corners."""
    corners = np.sort(np.random.default_rng(seed).uniform(0, 1, (count, 2, 2)), axis=1) * [width, height]
    return [(x0, y0, x1, y1) for (x0, y0), (x1, y1) in corners.tolist()]
