"""Outlines of masks: exact along the pixels, against filling by Pillow and pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from openavs.exports.polygons import Ring, join_rings, mask_to_rings, signed_area, simplify
from openavs.structures.types import BoolMask
from tests.exports.conftest import disc, pair, ring

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def inside(rings: list[Ring], size: tuple[int, int]) -> BoolMask:
    """The pixels whose middle lies within an odd number of rings, counted along a ray to the right."""
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    crossings = np.zeros(size, dtype=int)
    for points in rings:
        for (x0, y0), (_, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            crossings += (np.minimum(y0, y1) < ys) & (ys < np.maximum(y0, y1)) & (x0 > xs)
    return np.asarray(crossings % 2 == 1)


@given(MASKS)
@settings(max_examples=150, deadline=None)
def test_the_rings_hold_exactly_the_mask(mask: BoolMask) -> None:
    parts, holes = mask_to_rings(mask)
    assert np.array_equal(inside(parts + holes, mask.shape), mask)
    assert sum(map(signed_area, parts + holes)) == mask.sum()
    assert all(signed_area(part) > 0 for part in parts) and all(signed_area(hole) < 0 for hole in holes)


@given(MASKS)
@settings(max_examples=100, deadline=None)
def test_parts_are_the_four_connected_components(mask: BoolMask) -> None:
    from scipy import ndimage

    assert len(mask_to_rings(mask)[0]) == ndimage.label(mask)[1]


@pytest.mark.parametrize("mask", [disc(20, 30, 11), ring(), pair()], ids=["disc", "ring", "pair"])
def test_pycocotools_fills_the_outlines_to_the_same_mask(mask: BoolMask) -> None:
    parts, holes = mask_to_rings(mask)
    size = mask.shape
    filled = coco.decode(coco.merge(coco.frPyObjects([part.ravel().astype(float).tolist() for part in parts], *size)))
    for hole in holes:
        filled &= 1 - coco.decode(coco.frPyObjects([hole.ravel().astype(float).tolist()], *size))[..., 0]
    assert (filled.astype(bool) & mask).sum() / (filled.astype(bool) | mask).sum() > 0.97


def test_a_rectangle_has_four_corners_and_stays() -> None:
    mask = np.zeros((10, 12), dtype=np.bool_)
    mask[2:7, 3:11] = True
    ((part,), holes) = mask_to_rings(mask)
    assert sorted(map(tuple, part.tolist())) == [(3, 2), (3, 7), (11, 2), (11, 7)] and not holes
    assert len(simplify(part, 0.75)) == 4


def test_simplifying_drops_the_steps_and_keeps_the_shape() -> None:
    (part,), _ = mask_to_rings(disc(24, 32, 20))
    fewer = simplify(part, 0.75)
    assert len(fewer) < len(part) / 2
    assert abs(signed_area(fewer) / signed_area(part) - 1) < 0.03


def test_parts_hang_together_and_enclose_nothing_between() -> None:
    parts, _ = mask_to_rings(pair())
    whole = join_rings(parts)
    assert signed_area(whole) == pair().sum()
    picture = Image.new("1", (64, 48))
    ImageDraw.Draw(picture).polygon([tuple(point) for point in whole.tolist()], fill=1, outline=0)
    filled = np.asarray(picture)
    assert (filled & pair()).sum() / (filled | pair()).sum() > 0.8
