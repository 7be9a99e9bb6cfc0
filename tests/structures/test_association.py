"""Objects over time: links by track, by overlap, and over frames in which an object is missed."""

from __future__ import annotations

import numpy as np
import pytest

from openavs.structures.association import MEMORY, ObjectLinker
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import BoolMask, Segment

Thing = tuple[int, str, int | None]  # column, phrase, track


def patch(x: int) -> BoolMask:
    mask = np.zeros((40, 60), dtype=np.bool_)
    mask[10:20, x : x + 10] = True
    return mask


def linked(*frames: list[Thing], step: float = 1.0) -> list[list[int]]:
    """The objects of each frame's segments, of frames `step` seconds apart."""
    linker, found = ObjectLinker(), []
    for i, things in enumerate(frames):
        masks = [patch(x) for x, _, _ in things]
        segments = [
            Segment(mask_to_rle(mask), (0.0, 0.0, 1.0, 1.0), phrase, 0.5, track=track)
            for mask, (_, phrase, track) in zip(masks, things, strict=True)
        ]
        found.append(linker.link(i * step, segments))
    return found


def test_segments_of_a_track_are_one_object_wherever_they_are() -> None:
    assert linked([(0, "dog", 1), (20, "dog", 2)], [(40, "dog", 2), (20, "dog", 1)]) == [[0, 1], [1, 0]]


def test_without_a_tracker_overlapping_segments_of_a_phrase_are_one_object() -> None:
    assert linked([(0, "dog", None), (20, "dog", None)], [(22, "dog", None), (3, "dog", None)]) == [[0, 1], [1, 0]]


@pytest.mark.parametrize("second", [(8, "dog", None), (0, "bell", None), (0, "dog", 3)])
def test_other_places_phrases_and_tracks_are_other_objects(second: Thing) -> None:
    assert linked([(0, "dog", None)], [second]) == [[0], [1]]


def test_segments_of_a_frame_are_different_objects_and_the_overlaps_sum_up() -> None:
    assert linked([(0, "dog", None)], [(1, "dog", None), (0, "dog", None)]) == [[0], [1, 0]]
    two = [(0, "dog", None), (6, "dog", None)]
    assert linked(two, [(4, "dog", None), (11, "dog", None)]) == [[0, 1], [0, 1]]  # the first fits both


def test_an_object_may_be_missed_for_some_seconds() -> None:
    both, one = [(0, "dog", None), (20, "dog", None)], [(0, "dog", None)]
    assert linked(both, one, one, both) == [[0, 1], [0], [0], [0, 1]]
    assert linked(both, one, one, both, step=MEMORY / 2) == [[0, 1], [0], [0], [0, 2]]
