"""Run-length codes: what COCO's own decoder makes of them, their union and boxes, and codes that fit no mask."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from openavs.errors import InputError
from openavs.exports.coco import JsonListWriter, coco_box, coco_categories, coco_rle
from openavs.structures.masks import (
    MAX_PIXELS,
    RLE,
    check_rle,
    mask_iou,
    mask_to_rle,
    merge_masks,
    resize_mask,
    rle_to_mask,
    rle_to_part,
    segments_to_label_map,
    segments_to_mask,
    small_size,
)
from openavs.structures.types import BoolMask, Segment

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def drawn(shape: tuple[int, int], seed: int, share: float = 0.5) -> BoolMask:
    return np.random.default_rng(seed).random(shape) < share


def written(runs: list[int], size: tuple[int, int]) -> RLE:
    """A code by the rule of COCO: runs down the columns, from the fourth on as differences, 5 bits a letter."""
    letters = ""
    for place, run in enumerate(runs):
        rest = run - runs[place - 2] if place > 2 else run
        while True:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            letters += chr(48 + bits + 32 * more)
            if not more:
                break
    return RLE(size, letters)


def runs_of(mask: BoolMask) -> list[int]:
    """Lengths of equal pixels down the columns, background first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


@settings(max_examples=40)
@given(SHAPES, st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_a_mask_survives_its_code(shape: tuple[int, int], seed: int, share: float) -> None:
    mask = drawn(shape, seed, share)
    code = mask_to_rle(mask)
    assert code.size == shape and code.area == mask.sum()
    again = rle_to_mask(code)
    assert again.dtype == np.bool_ and np.array_equal(again, mask)
    assert code == written(runs_of(mask), shape)
    check_rle(code, "mask")


def test_long_runs_take_several_letters() -> None:
    mask = np.zeros((700, 900), dtype=bool)
    mask[3:, 5:800] = True
    assert mask_to_rle(mask) == written(runs_of(mask), (700, 900))
    check_rle(mask_to_rle(mask), "mask")


@pytest.mark.parametrize("shape", [(4,), (2, 2, 1)])
def test_only_pictures_are_encoded(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"a mask is \[H, W\], not \[{', '.join(map(str, shape))}\]"):
        mask_to_rle(np.zeros(shape, dtype=bool))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(-1, 1))
def test_a_code_is_taken_if_its_runs_fill_the_mask(runs: list[int], off: int) -> None:
    size = (sum(runs) + off, 1)
    code = written(runs, size)
    if off == 0:
        check_rle(code, "mask")
        if size[0]:
            assert runs_of(rle_to_mask(code)) == runs_of(rle_to_mask(mask_to_rle(rle_to_mask(code))))
    else:
        with pytest.raises(InputError, match=rf"^mask: .* does not fill a mask of {size[0]} x 1 pixels"):
            check_rle(code, "mask")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (RLE((2, 2), "4\x7f"), "^here is not a run-length code$"),
        (RLE((2, 2), "/"), "not a run-length code"),
        (RLE((2, 2), "p"), "not a run-length code"),
        (RLE((2, 2), "P" * 13 + "0"), "not a run-length code"),
        (RLE((2, 2), "é"), "not a run-length code"),
        (RLE((2, 2), "\udc80"), "not a run-length code"),
        (RLE((2, 2), ""), r"^here: the run-length code does not fill a mask of 2 x 2 pixels$"),
        (RLE((2, 2), "4P"), "does not fill"),  # the last letter wants another
        (RLE((2, 2), "5O"), "does not fill"),  # 5 and -1
        (RLE((-2, -2), "4"), "does not fill"),
        (RLE((-2, 2), "L"), "does not fill"),
        (RLE((MAX_PIXELS, 2), "0"), rf"^here is a mask of {MAX_PIXELS} x 2 pixels, over the limit of {MAX_PIXELS}$"),
    ],
)
def test_a_code_that_the_decoder_would_write_beside_is_refused(code: RLE, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_rle(code, "here")


def test_the_largest_mask_is_taken() -> None:
    check_rle(written([MAX_PIXELS], (MAX_PIXELS, 1)), "mask")
    check_rle(RLE((2, 2), "4"), "mask")
    check_rle(RLE((2, 2), "T" + "P" * 11 + "0"), "mask")  # 4, in more letters than it needs
    check_rle(RLE((0, 5), "0"), "mask")


@settings(max_examples=40)
@given(SHAPES, st.lists(st.integers(0, 2**32), min_size=1, max_size=4))
def test_a_union_and_its_box(shape: tuple[int, int], seeds: list[int]) -> None:
    masks = [drawn(shape, seed, 0.2) for seed in seeds]
    union = merge_masks([mask_to_rle(mask) for mask in masks])
    expected = np.any(masks, axis=0)
    assert np.array_equal(rle_to_mask(union), expected) and union.size == shape
    ys, xs = np.nonzero(expected)
    around = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1] if expected.any() else [0, 0, 0, 0]
    assert coco_box(union) == around
    assert all(isinstance(value, float) for value in coco_box(union))
    assert coco_rle(union) == {"size": list(shape), "counts": union.counts}


def test_categories_begin_with_one() -> None:
    assert coco_categories(["dog", "cat"]) == [
        {"id": 1, "name": "dog", "supercategory": ""}, {"id": 2, "name": "cat", "supercategory": ""}
    ]  # fmt: skip


def test_lists_that_grow_at_the_same_time_become_one_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "small"))  # which is not there: they grow beside the file
    path = tmp_path / "coco.json"
    with JsonListWriter(path, {"info": {"a": 1}, "year": 2026}, ["images", "annotations", "none"]) as file:
        for number in range(3):
            file.add("images", {"id": number})
            file.add("annotations", [number, number])
        file.finish({"categories": [], "last": None})
    data = json.loads(path.read_bytes())
    assert data == {
        "info": {"a": 1}, "year": 2026, "images": [{"id": n} for n in range(3)],
        "annotations": [[n, n] for n in range(3)], "none": [], "categories": [], "last": None,
    }  # fmt: skip
    assert list(data) == ["info", "year", "images", "annotations", "none", "categories", "last"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["coco.json"], "no file beside it is left"
    assert b'{"id":1},\n' in path.read_bytes(), "an entry is a line without blanks"


def test_numbers_that_json_has_not_are_in_no_file(tmp_path: Path) -> None:
    with JsonListWriter(tmp_path / "a.json", {"top": math.inf}, ["list"]) as file:
        with pytest.raises(ValueError, match="JSON compliant"):
            file.add("list", math.nan)
        with pytest.raises(ValueError, match="JSON compliant"):
            file.finish({})


def segment(mask: BoolMask, score: float) -> Segment:
    return Segment(mask_to_rle(mask), (0.0, 0.0, 1.0, 1.0), "dog", score)


@settings(max_examples=40)
@given(SHAPES, st.lists(st.tuples(st.integers(0, 2**32), st.floats(0, 1)), max_size=4))
def test_the_best_segment_is_on_top_of_a_label_map(shape: tuple[int, int], given: list[tuple[int, float]]) -> None:
    masks = [drawn(shape, seed) for seed, _ in given]
    segments = [segment(mask, score) for mask, (_, score) in zip(masks, given, strict=True)]
    values = [5 + place for place in range(len(masks))]
    painted = segments_to_label_map(segments, values, shape)
    assert painted.shape == shape and painted.dtype == np.uint8
    union = segments_to_mask(segments, shape)
    assert union.shape == shape and union.dtype == np.bool_
    assert np.array_equal(union, painted > 0)
    for place in np.ndindex(shape):
        over = [(score, value) for mask, (_, score), value in zip(masks, given, values, strict=True) if mask[place]]
        best = max((score for score, _ in over), default=0.0)
        assert painted[place] in {value for score, value in over if score == best} or not over


def test_small_sizes_keep_the_shape_and_never_grow() -> None:
    assert small_size((720, 1280), 640) == (360, 640) and small_size((90, 120), 640) == (90, 120)
    assert small_size((1, 4000), 640) == (1, 640)


def test_a_resized_mask_keeps_its_place_and_is_never_lost() -> None:
    patch, speck = np.zeros((40, 60), dtype=np.bool_), np.zeros((80, 120), dtype=np.bool_)
    patch[10:20, 5:15] = speck[40, 60] = True
    big = np.kron(patch, np.ones((2, 2), dtype=np.bool_)).astype(np.bool_)
    assert np.array_equal(resize_mask(big, (40, 60)), patch) and resize_mask(patch, (40, 60)) is patch
    assert np.flatnonzero(resize_mask(speck, (4, 6))).tolist() == [2 * 6 + 3]
    assert not resize_mask(np.zeros((80, 120), dtype=np.bool_), (4, 6)).any()


def test_iou_of_masks() -> None:
    one, two = np.zeros((2, 4, 15), dtype=np.bool_)
    one[:, :10] = two[:, 5:] = True
    assert mask_iou(one, two) == pytest.approx(1 / 3)
    assert mask_iou(one & two & ~one, np.zeros_like(one)) == 0.0


@pytest.mark.parametrize("seed", range(8))
def test_a_part_is_the_mask_inside_its_box(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((rng.integers(1, 40), rng.integers(1, 40)), dtype=np.bool_)
    y, x = rng.integers(0, mask.shape[0]), rng.integers(0, mask.shape[1])
    mask[y:, x : x + 9] = rng.random(mask[y:, x : x + 9].shape) < seed / 7  # none of it to all of it
    rle = mask_to_rle(mask)
    part, (left, top) = rle_to_part(rle)
    restored = np.zeros_like(mask)
    restored[top : top + part.shape[0], left : left + part.shape[1]] = part
    np.testing.assert_array_equal(restored, mask)
    assert part.shape == (rle.box[3] - rle.box[1], rle.box[2] - rle.box[0])
