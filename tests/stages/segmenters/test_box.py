"""The filled box: pixels with their center in it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.stages.segmenters.base import Segmenter
from openavs.stages.segmenters.box import BoxSegmenter
from openavs.structures.masks import rle_to_mask

IMAGE = np.zeros((4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((1.0, 0.0, 3.0, 2.0), slice(0, 2), slice(1, 3)),
        ((0.5, 0.5, 2.5, 1.6), slice(0, 2), slice(0, 2)),  # centers at 0.5, 1.5, ...: the left edge's is in
        ((-9.0, 1.0, 99.0, 99.0), slice(1, 4), slice(0, 6)),
        ((2.6, 1.0, 3.4, 2.0), slice(0, 0), slice(0, 0)),  # between two centers
        ((50.0, 50.0, 60.0, 60.0), slice(0, 0), slice(0, 0)),
    ],
)
def test_pixels_with_their_center_in_the_box_are_marked(
    box: tuple[float, float, float, float], rows: slice, columns: slice
) -> None:
    expected = np.zeros((4, 6), dtype=bool)
    expected[rows, columns] = True
    [[mask]] = BoxSegmenter().segment([IMAGE], [[box]])
    assert np.array_equal(rle_to_mask(mask.rle), expected)
    assert mask.score is None


def test_one_mask_per_box_in_order() -> None:
    made = BoxSegmenter().segment([IMAGE, IMAGE], [[], [(0, 0, 1, 1), (0, 0, 6, 4)]])
    assert [[mask.rle.area for mask in masks] for masks in made] == [[], [1, 24]]
    assert isinstance(BoxSegmenter(), Segmenter)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InputError, match="one list of boxes per image"):
        BoxSegmenter().segment([IMAGE], [])
    with pytest.raises(InputError, match="not finite"):
        BoxSegmenter().segment([IMAGE], [[(0.0, 0.0, math.nan, 1.0)]])
