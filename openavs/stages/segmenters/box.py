"""The filled box as the mask: what is left of a result when nothing segments. A baseline, and a model's stand-in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from openavs.errors import InputError
from openavs.structures.types import Box, ImageArray, Mask, mask_to_rle


class BoxSegmenter:
    """Marks every pixel whose centre lies in the box; gives no score of its own."""

    def segment(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]]) -> list[list[Mask]]:
        """One mask per box, in the box's order and the image's size; what lies outside of the image is cut off."""
        if len(images) != len(boxes):
            raise InputError(f"box: {len(images)} images but boxes for {len(boxes)}; give one list of boxes an image")
        return [
            [_filled(box, (int(image.shape[0]), int(image.shape[1]))) for box in own]
            for image, own in zip(images, boxes, strict=True)
        ]


def _filled(box: Box, size: tuple[int, int]) -> Mask:
    if not all(map(math.isfinite, box)):
        raise InputError("box: a box has coordinates that are not finite; look at the detector that made it")
    x0, y0, x1, y1 = (max(math.ceil(edge - 0.5), 0) for edge in box)  # pixel i has its centre at i + 0.5
    mask = np.zeros(size, dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return Mask(mask_to_rle(mask))
