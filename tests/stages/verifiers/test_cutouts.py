"""Squares around masks and their cut-outs."""

from __future__ import annotations

import numpy as np
from hypothesis import given, strategies as st

from openavs.stages.verifiers.candidates import Square, cut_out, cut_square, square_around
from openavs.structures.types import BoolMask
from tests.stages.segmenters.images import picture

FILL = np.array([10, 20, 30], dtype=np.uint8)


def block(height: int, width: int, rows: slice, columns: slice) -> BoolMask:
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[rows, columns] = True
    return mask


def test_the_square_holds_the_mask_and_its_margin() -> None:
    mask = block(60, 80, slice(10, 20), slice(30, 50))
    assert square_around(mask, 0.0) == Square(5, 30, 20)
    assert square_around(mask, 0.1) == Square(3, 28, 24)
    assert square_around(np.zeros((4, 4), dtype=np.bool_), 0.1) is None


@given(st.integers(-40, 60), st.integers(-40, 60), st.integers(1, 50))
def test_a_cut_square_is_the_padded_image(top: int, left: int, side: int) -> None:
    image = picture(20, 30)
    padded = np.broadcast_to(FILL, (220, 230, 3)).copy()
    padded[100:120, 100:130] = image
    expected = padded[100 + top : 100 + top + side, 100 + left : 100 + left + side]
    assert np.array_equal(cut_square(image, Square(top, left, side), FILL), expected)


def test_the_background_is_filled_or_blended() -> None:
    image, mask = picture(20, 30), block(20, 30, slice(5, 10), slice(5, 10))
    square = Square(2, 2, 12)
    within = cut_square(mask, square, False)
    filled, half = (cut_out(image, within, square, FILL, opacity) for opacity in (0.0, 0.5))
    cut = image[2:14, 2:14]
    assert np.array_equal(filled[within], cut[within]) and (filled[~within] == FILL).all()
    assert np.array_equal(half[within], cut[within])
    assert np.abs(half[~within].astype(int) - (cut[~within].astype(int) + FILL) / 2).max() <= 0.5
    assert np.array_equal(cut_out(image, within, square, FILL, 1.0), cut)
