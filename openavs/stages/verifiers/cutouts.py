"""Cut-outs of segments: the square around a mask, with its background filled."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from openavs.structures.types import BoolMask, ImageArray


class Square(NamedTuple):
    """A square in pixels; it may extend beyond the image."""

    top: int
    left: int
    side: int


def square_around(mask: BoolMask, margin: float) -> Square | None:
    """Return the square around a mask `[H, W]`; None for an empty mask.

    Args:
        mask: the mask.
        margin: space on each side, relative to the longer side of the mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    side = max(round(max(height, width) * (1 + 2 * margin)), 1)
    return Square(top - (side - height) // 2, left - (side - width) // 2, side)


def cut_square(array: npt.NDArray[Any], square: Square, fill: Any) -> npt.NDArray[Any]:
    """Cut a square out of an image or mask `[H, W, ...]`: `[side, side, ...]`, with `fill` beyond its edges."""
    top, left, side = square
    cut = np.empty((side, side, *array.shape[2:]), dtype=array.dtype)
    cut[...] = fill
    rows = slice(max(top, 0), max(min(top + side, array.shape[0]), 0))
    columns = slice(max(left, 0), max(min(left + side, array.shape[1]), 0))
    inside = array[rows, columns]
    row, column = rows.start - top, columns.start - left
    cut[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return cut


def cut_out(
    image: ImageArray, mask: BoolMask, square: Square, fill: npt.NDArray[np.uint8], background: float
) -> ImageArray:
    """Cut the square out of an image and fill its background: uint8 `[side, side, 3]`.

    Args:
        image: the image.
        mask: the segment's mask within the square, `[side, side]`.
        square: the square in the image.
        fill: color of the background and of all beyond the image, uint8 `[3]`.
        background: opacity of the image around the mask, in [0, 1].
    """
    cut = cut_square(image, square, fill)
    if background == 0:
        cut[~mask] = fill
        return cut
    pixels = cut.astype(np.float32)
    around = fill + background * (pixels - fill)
    return np.asarray(np.where(mask[..., None], pixels, around).round(), dtype=np.uint8)
