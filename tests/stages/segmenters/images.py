"""Images and boxes for the segmenters' tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from openavs.structures.types import Box, ImageArray


def picture(height: int, width: int, seed: int = 0) -> ImageArray:
    """Colored blocks in noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3))
    big = blocks.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    image: ImageArray = np.clip(big + rng.integers(-20, 20, big.shape), 0, 255).astype(np.uint8)
    return image


def some_boxes(height: int, width: int, count: int, seed: int = 0) -> list[Box]:
    """Boxes with fractional corners."""
    corners = np.sort(np.random.default_rng(seed).uniform(0, 1, (count, 2, 2)), axis=1) * [width, height]
    return [(x0, y0, x1, y1) for (x0, y0), (x1, y1) in corners.tolist()]


def same_but_for_rounding(ours: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_]) -> bool:
    """Whether masks differ at most in pixels whose logit is next to nothing, as sums in another order do."""
    return ours.shape == theirs.shape and float((ours != theirs).mean()) < 1e-3
