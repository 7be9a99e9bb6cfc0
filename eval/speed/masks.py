"""Masks to measure with: an ellipse, and label maps of a few of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIDE = 224


def blob(rng: np.random.Generator, size: tuple[int, int] = (SIDE, SIDE)) -> npt.NDArray[np.uint8]:
    """An ellipse somewhere, uint8 0 and 255, `[height, width]`."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    cx, cy = rng.uniform(0.2, 0.8, 2) * (width, height)
    rx, ry = rng.uniform(0.1, 0.35, 2) * (width, height)
    inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
    return np.where(inside, np.uint8(255), np.uint8(0))


def label_map(rng: np.random.Generator, size: tuple[int, int] = (SIDE, SIDE)) -> npt.NDArray[np.uint8]:
    """Three things on the background, class indices uint8 `[height, width]`."""
    labels = np.zeros((size[1], size[0]), np.uint8)
    for index in rng.integers(1, 71, 3):
        labels[blob(rng, size) > 0] = index
    return labels
