"""Transforms of images and masks: choice of frames, scaling, cropping, mirroring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from openavs.structures.types import ImageArray
from openavs.training.base import Size, TransformConfig

Labels = npt.NDArray[np.uint8]


def scaled_size(size: Size, side: int, view: TransformConfig) -> Size:
    """Return the (height, width) of an image of `size` after scaling, before the crop.

    For a crop the longer side is rounded down, as AVSS's published loader does.
    """
    height, width = size
    if view.fit == "stretch":
        return side, side
    if view.fit == "crop":
        return height * side // min(size), width * side // min(size)
    factor = min(side / min(size), view.longest / max(size))
    return max(1, round(height * factor)), max(1, round(width * factor))


def scale_image(image: ImageArray, side: int, view: TransformConfig) -> ImageArray:
    """Scale an image `[H, W, 3]` bilinearly."""
    size = scaled_size((image.shape[0], image.shape[1]), side, view)
    return _cut(_resized(image, size, Image.Resampling.BILINEAR), side, view)


def scale_mask(mask: Labels, of: Size, side: int, view: TransformConfig) -> Labels:
    """Scale a mask `[h, w]` of an image of size `of` by the nearest pixel, to fit the scaled image.

    A mask may be stored at another size than its image (AVSS compares both at 224 x 224).
    """
    return _cut(_resized(mask, scaled_size(of, side, view), Image.Resampling.NEAREST), side, view)


def choose_frames(
    count: int, labeled: Sequence[int], wanted: int | None, random: np.random.Generator
) -> tuple[int, ...]:
    """Return the frames of a training example, in order: all, or `wanted` of them with at least one labeled."""
    if wanted is None or wanted >= count:
        return tuple(range(count))
    first = int(random.choice(np.asarray(labeled))) if labeled else int(random.integers(count))
    others = [i for i in range(count) if i != first]
    return tuple(sorted([first, *(int(i) for i in random.choice(others, wanted - 1, replace=False))]))


def runs_of_frames(count: int, wanted: int | None) -> list[range]:
    """Return the frames of a clip in consecutive runs of `wanted`; the last one may be shorter."""
    step = wanted or max(count, 1)
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def _resized(pixels: npt.NDArray[np.uint8], size: Size, how: Image.Resampling) -> npt.NDArray[np.uint8]:
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), how))


def _cut(pixels: npt.NDArray[np.uint8], side: int, view: TransformConfig) -> npt.NDArray[np.uint8]:
    """Cut the centered square if the view wants one; half pixels are rounded to even, as published."""
    if view.fit != "crop":
        return pixels
    top, left = (round((length - side) / 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]
