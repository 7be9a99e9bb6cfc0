"""The IoU tracker on squares."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from openavs.errors import InputError
from openavs.stages.trackers import iou as iou_tracker
from openavs.stages.trackers.base import Tracker
from openavs.stages.trackers.iou import IouTracker
from openavs.structures.types import TrackedFrame
from tests.stages.trackers.squares import FPS, frames, segment, square, tracks


def test_moving_objects_keep_their_tracks() -> None:
    rows = [[segment("dog", 4 * i), segment("bell", 100 - 4 * i, 25)] for i in range(20)]
    found = tracks(IouTracker().track(frames(rows)))
    assert all(row == {"dog": [0], "bell": [1]} for row in found.values())


def test_two_of_a_kind_cross_without_changing_tracks() -> None:
    """They pass through each other; only their speed says who is who afterwards."""
    rows = [[segment("dog", 6 * i), segment("dog", 90 - 6 * i)] for i in range(16)]
    ids = [[s.track for s in frame.segments] for frame in IouTracker().track(frames(rows))]
    assert ids == [[0, 1]] * 16


def test_an_object_hides_behind_another_and_reappears() -> None:
    rows = [[segment("dog", 6 * i)] + ([] if 5 < i < 10 else [segment("bell", 45, 10, side=20)]) for i in range(16)]
    found = tracks(IouTracker(max_gap_seconds=0).track(frames(rows)))
    assert found[0] == {"dog": [0], "bell": [1]} and found[15] == {"dog": [0], "bell": [1]}


def test_an_object_that_stops_sounding_keeps_its_track() -> None:
    rows = [[segment("dog", 10 + i)] if i < 8 or i > 40 else [segment("bell", 90)] for i in range(48)]
    found = tracks(IouTracker().track(frames(rows)))
    assert found[0]["dog"] == [0] and found[47]["dog"] == [0]
    assert "dog" not in found[20]


def test_an_expired_or_distant_object_gets_a_new_track() -> None:
    rows = [[segment("dog", 10)] if i in (0, 40) else [segment("bell", 90)] for i in range(41)]
    assert tracks(IouTracker(max_age_seconds=2).track(frames(rows)))[40]["dog"] == [2]
    far = frames([[segment("dog", 0)], [segment("dog", 100)]])
    assert tracks(IouTracker().track(far)) == {0: {"dog": [0]}, 1: {"dog": [1]}}


def test_a_gap_is_filled_with_interpolated_masks() -> None:
    rows = [[segment("dog", 0, score=0.9)], [], [], [segment("dog", 6, score=0.7)]]
    answer = list(IouTracker(max_gap_seconds=0.5).track(frames(rows, phrases=[["dog"]] * 4)))
    assert [s.frame.index for s in answer] == [0, 1, 2, 3]
    assert [s.segments[0].mask for s in answer] == [square(0), square(2), square(4), square(6)]
    assert [s.segments[0].score for s in answer] == [0.9, 0.7, 0.7, 0.7]
    assert all(s.rejected == () and s.segments[0].track == 0 for s in answer)
    for fill, asked in ((0.1, [["dog"]] * 4), (0.5, [["dog"], ["bell"], ["bell"], ["dog"]])):
        alone = list(IouTracker(max_gap_seconds=fill).track(frames(rows, phrases=asked)))
        assert [len(s.segments) for s in alone] == [1, 0, 0, 1]
        assert alone[1].rejected != ()


@pytest.mark.parametrize("shift", [(0, 0), (30, 5), (-30, -9), (119, 0), (400, 0), (-400, 3), (0, 41), (5, -40)])
def test_a_moved_mask_is_cut_off_at_the_edges(shift: tuple[int, int]) -> None:
    assert iou_tracker._shift(square(50, 10), *shift) == square(50 + shift[0], 10 + shift[1])


def test_frames_are_held_back_no_longer_than_they_can_be_filled() -> None:
    given: list[int] = []

    def source() -> Iterable[TrackedFrame]:
        for frame in frames([[segment("dog", 10)]] * 30):
            given.append(frame.frame.index)
            yield frame

    for answer in IouTracker(max_gap_seconds=0.5).track(source()):
        assert given[-1] - answer.frame.index <= 0.5 * FPS + 1


def test_options_of_the_tracker_without_a_model() -> None:
    assert isinstance(IouTracker(), Tracker)
    for options in ({"min_iou": 0.0}, {"max_age_seconds": -1.0}):
        with pytest.raises(InputError, match="iou: "):
            IouTracker(**options)
