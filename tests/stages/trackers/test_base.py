"""Tracking: key frames, mask IoU and matching, on squares."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from openavs.stages.trackers.base import key_frames, remaining_rejections
from openavs.stages.trackers.iou import CROSS_PHRASE_MIN_IOU, SAME_PHRASE_BONUS, match_tracks
from openavs.structures.masks import rle_iou
from openavs.structures.types import Rejection
from tests.stages.trackers.squares import segment, square


@pytest.mark.parametrize(
    ("phrases", "interval", "keys"),
    [
        ("aaaaaa", 2, {0, 2, 4}),
        ("aaaaaa", 1, {0, 1, 2, 3, 4, 5}),
        ("aabbbb", 3, {0, 2, 5}),  # where the prompts change, the count restarts
        ("aa..aa", 9, {0, 4}),  # and after every silence
        ("......", 2, set()),
        ("", 2, set()),
    ],
)
def test_key_frames(phrases: str, interval: int, keys: set[int]) -> None:
    assert key_frames(["" if phrase == "." else phrase for phrase in phrases], interval) == keys


def test_the_order_of_the_prompts_does_not_matter() -> None:
    assert key_frames([("dog", "bell"), ("bell", "dog")], 9) == {0}


def test_overlap_of_masks() -> None:
    overlap = rle_iou([square(0), square(6), square(100, side=0)], [square(0), square(50)])
    assert overlap == pytest.approx(np.array([[1, 0], [1 / 3, 0], [0, 0]]))
    assert rle_iou([], [square(0)]).shape == (0, 1) and rle_iou([square(0)], []).shape == (1, 0)


def test_box_of_a_mask() -> None:
    assert square(3, 5, 7).box == (3.0, 5.0, 10.0, 12.0)
    assert square(0, 0, 0).box == (0.0, 0.0, 0.0, 0.0)


overlaps = st.tuples(st.integers(0, 4), st.integers(0, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(0, 1))
)


@settings(deadline=None)
@given(overlap=overlaps, least=st.floats(0.05, 1), seed=st.integers(0, 99))
def test_a_match_is_one_to_one_and_no_worse_than_any_other(overlap: Any, least: float, seed: int) -> None:
    same = np.random.default_rng(seed).random(overlap.shape) < 0.6
    who = match_tracks(overlap, same, least)
    matched = [(row, column) for column, row in enumerate(who) if row is not None]
    assert len({row for row, _ in matched}) == len(matched)
    for row, column in matched:
        assert overlap[row, column] >= (least if same[row, column] else max(least, CROSS_PHRASE_MIN_IOU))
    allowed = np.where(same, overlap >= least, overlap >= max(least, CROSS_PHRASE_MIN_IOU))
    gain = np.where(allowed, overlap + SAME_PHRASE_BONUS * same, 0.0)
    ours = sum(gain[row, column] for row, column in matched)
    count = max(overlap.shape)
    padded = np.zeros((count, count))
    padded[: overlap.shape[0], : overlap.shape[1]] = gain
    best = max(sum(padded[i, place] for i, place in enumerate(order)) for order in permutations(range(count)))
    assert ours == pytest.approx(best)


def test_an_object_under_another_phrase_needs_a_high_iou() -> None:
    none = np.zeros((1, 1), dtype=np.bool_)
    assert match_tracks(np.array([[0.6]]), none, 0.2) == [0]
    assert match_tracks(np.array([[0.4]]), none, 0.2) == [None]
    assert match_tracks(np.array([[0.4]]), ~none, 0.2) == [0]


def test_a_confused_phrase_does_not_swap_tracks() -> None:
    """The dog's phrase comes back on the cat, whose own find is missing: it is the cat."""
    overlap = np.array([[0.25], [0.9]])  # with the dog, with the cat
    assert match_tracks(overlap, np.array([[True], [False]]), 0.2) == [1]


def test_rejections_of_tracked_phrases_are_removed() -> None:
    dropped = [Rejection("dog", "not found"), Rejection("bell", "below threshold"), Rejection("dog", "verifier")]
    assert remaining_rejections(dropped, [segment("dog", 0)]) == (dropped[1], dropped[2])
