"""Box segmenter: the filled box as the mask. A baseline without a model, and without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from openavs.errors import InputError
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Box, ImageArray, Mask


class BoxSegmenter:
    """Marks every pixel with its center in the box. Masks have no score."""

    def segment(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]]) -> list[list[Mask]]:
        """Return one mask per box, in the order of the boxes; boxes are cropped to the image."""
        if len(images) != len(boxes):
            raise InputError(f"box: {len(images)} images but boxes for {len(boxes)}; give one list of boxes per image")
        return [
            [_fill(box, (int(image.shape[0]), int(image.shape[1]))) for box in own]
            for image, own in zip(images, boxes, strict=True)
        ]


def _fill(box: Box, size: tuple[int, int]) -> Mask:
    if not all(map(math.isfinite, box)):
        raise InputError("box: a box has coordinates that are not finite; check the detector")
    x0, y0, x1, y1 = (max(math.ceil(edge - 0.5), 0) for edge in box)  # the center of pixel i is at i + 0.5
    mask = np.zeros(size, dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return Mask(mask_to_rle(mask))
