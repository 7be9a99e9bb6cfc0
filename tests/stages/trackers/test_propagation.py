"""Tracking by mask propagation, with a propagator that shifts masks at a known speed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from openavs.stages.trackers.base import key_frames
from openavs.stages.trackers.propagation import TrackerConfig, propagate_tracks
from openavs.structures.masks import RLE
from openavs.structures.types import ImageArray, Rejection
from tests.stages.trackers.squares import frames, segment, square, tracks


@dataclass
class ShiftPropagator:
    """Shifts a mask by a known motion (pixels per frame, by the top row of the mask); hides it in given frames."""

    speeds: dict[int, int] = field(default_factory=dict)
    hidden: frozenset[int] = frozenset()
    log: list[tuple[str, int]] = field(default_factory=list)

    def init_track(self, step: int, image: ImageArray, mask: RLE) -> dict[str, Any]:
        self.log.append(("init", step))
        return {"mask": mask, "step": step}

    def propagate(
        self, memory: dict[str, Any], step: int, image: ImageArray, backward: bool = False
    ) -> tuple[RLE, float]:
        self.log.append(("back" if backward else "forward", step))
        assert step == memory["step"] + (-1 if backward else 1)  # neighboring frames only
        x, y, _, _ = memory["mask"].box
        shift = self.speeds.get(int(y), 0) * (-1 if backward else 1)
        moved = square(x + shift, y)
        memory.update(mask=moved, step=step)
        return (square(0, 0, 0) if step in self.hidden else moved), 0.75

    def correct(self, memory: dict[str, Any], step: int, image: ImageArray, mask: RLE) -> None:
        self.log.append(("correct", step))
        memory.update(mask=mask)


def test_tracks_are_propagated_between_key_frames() -> None:
    rows = [[segment("dog", 3 * i)] for i in range(9)]
    propagator = ShiftPropagator({10: 3})
    answer = list(propagate_tracks(propagator, frames(rows, keys={0, 4, 8}), TrackerConfig()))
    assert [s.segments[0].mask for s in answer] == [square(3 * i) for i in range(9)]
    assert {s.segments[0].track for s in answer} == {0}
    assert answer[1].segments[0].mask_score == 0.75 and answer[1].segments[0].box == (3.0, 10.0, 15.0, 22.0)
    assert [entry for entry in propagator.log if entry[0] != "forward"] == [("init", 0), ("correct", 4), ("correct", 8)]


def test_a_new_track_is_propagated_back_to_the_key_frame_before() -> None:
    asked = [["dog", "bell"]] * 9
    rows = [[segment("dog", 3 * i)] + ([segment("bell", 60, 25, 0.9)] if i == 8 else []) for i in range(9)]
    answer = list(
        propagate_tracks(ShiftPropagator({10: 3}), frames(rows, phrases=asked, keys={0, 4, 8}), TrackerConfig())
    )
    found = tracks(answer)
    assert found[4] == {"dog": [0]}  # the key frame itself was looked at, and there it was not found
    assert all(found[i] == {"bell": [1], "dog": [0]} for i in (5, 6, 7, 8))
    assert [s.phrase for s in answer[7].segments] == ["bell", "dog"]  # best first
    assert answer[4].rejected == (Rejection("bell", "not found"),)
    assert answer[2].rejected == (Rejection("bell", "not tracked"),)


def test_propagating_back_stops_where_the_object_is_hidden_or_another() -> None:
    asked = [["dog", "cat"]] * 9
    rows = [[segment("dog", 10, 10)] if i < 8 else [segment("dog", 10, 10), segment("cat", 50, 25)] for i in range(9)]
    found = tracks(
        propagate_tracks(
            ShiftPropagator(hidden=frozenset({5})), frames(rows, phrases=asked, keys={0, 8}), TrackerConfig()
        )
    )
    assert [i for i in found if "cat" in found[i]] == [6, 7, 8]
    merged = [[segment("dog", 10)] if i < 8 else [segment("dog", 50, 25), segment("cat", 10, 22)] for i in range(9)]
    found = tracks(
        propagate_tracks(ShiftPropagator({22: 0}), frames(merged, phrases=asked, keys={0, 8}), TrackerConfig())
    )
    assert "cat" in found[7]


def test_a_new_track_is_not_propagated_back_to_frames_without_its_phrase() -> None:
    asked = [["dog", "bell"]] * 5 + [["dog"]] * 3 + [["dog", "bell"]]
    rows = [[segment("dog", 10)] if i < 8 else [segment("dog", 10), segment("bell", 60, 25)] for i in range(9)]
    found = tracks(propagate_tracks(ShiftPropagator(), frames(rows, phrases=asked, keys={0, 8}), TrackerConfig()))
    assert [i for i in found if "bell" in found[i]] == [1, 2, 3, 4, 8]


def test_propagating_back_stops_at_silence() -> None:
    asked = [["dog", "bell"]] * 3 + [[]] * 3 + [["dog", "bell"]]
    rows = [[segment("dog", 10)]] * 6 + [[segment("dog", 10), segment("bell", 60)]]
    propagator = ShiftPropagator()
    found = tracks(propagate_tracks(propagator, frames(rows, phrases=asked, keys={0, 6}), TrackerConfig()))
    assert found == {0: {"dog": [0]}, 1: {"dog": [0]}, 2: {"dog": [0]}, 6: {"dog": [0], "bell": [1]}}
    assert ("back", 2) not in propagator.log


def test_only_sounding_objects_are_reported_but_all_keep_their_tracks() -> None:
    asked = [["dog"]] * 4 + [["bell"]] * 4 + [["dog", "bell"]] * 4
    rows = [[segment(p, 10 if p == "dog" else 70) for p in phrases] for phrases in asked]
    found = tracks(
        propagate_tracks(ShiftPropagator(), frames(rows, phrases=asked, keys=key_frames(asked, 4)), TrackerConfig())
    )
    assert [found[i] for i in (3, 7, 11)] == [{"dog": [0]}, {"bell": [1]}, {"dog": [0], "bell": [1]}]


def test_an_object_keeps_its_track_under_another_phrase() -> None:
    asked = [["dog"]] * 2 + [["puppy"]] * 2 + [["dog"]] * 2
    rows = [[segment(phrases[0], 10)] for phrases in asked]
    found = tracks(propagate_tracks(ShiftPropagator(), frames(rows, phrases=asked, keys={0, 2, 4}), TrackerConfig()))
    assert [list(row.items()) for row in found.values()] == [[(p[0], [0])] for p in asked]


def test_a_track_that_is_missed_too_often_expires() -> None:
    rows = [[segment("dog", 10)]] + [[]] * 9
    asked = [["dog"]] * 10
    found = tracks(
        propagate_tracks(
            ShiftPropagator(), frames(rows, phrases=asked, keys=range(0, 10, 2)), TrackerConfig(max_missed_keyframes=2)
        )
    )
    assert [i for i in found if found[i]] == list(range(7))  # missed at 2, 4 and 6; at 6 it is still seen
    again = frames([*rows[:9], [segment("dog", 10)]], phrases=asked, keys=[0, 2, 4, 6, 8, 9])
    assert tracks(propagate_tracks(ShiftPropagator(), again, TrackerConfig(max_missed_keyframes=2)))[9] == {
        "dog": [1]
    }  # its id is not given again


def test_there_are_never_more_tracks_than_max_objects() -> None:
    rows = [[segment("bird", 13 * j, 10) for j in range(8)]] * 2
    propagator = ShiftPropagator()
    found = tracks(propagate_tracks(propagator, frames(rows), TrackerConfig(max_objects=3)))
    assert sorted(found[0]["bird"]) == list(range(8))
    assert propagator.log.count(("forward", 1)) == 3


def test_a_track_covered_by_a_segment_is_not_reported() -> None:
    """The track has another phrase and is not matched, but the segment covers it."""
    rows = [[segment("dog", 10)], [segment("cat", 13)]]
    answer = list(propagate_tracks(ShiftPropagator(), frames(rows, phrases=[["dog"], ["dog", "cat"]]), TrackerConfig()))
    assert [s.phrase for s in answer[1].segments] == ["cat"]


def test_frames_after_the_last_key_frame_are_tracked() -> None:
    answer = list(propagate_tracks(ShiftPropagator(), frames([[segment("dog", 10)]] * 5, keys={0}), TrackerConfig()))
    assert [len(s.segments) for s in answer] == [1] * 5
    assert list(propagate_tracks(ShiftPropagator(), [], TrackerConfig())) == []


def test_tiny_masks_are_not_reported() -> None:
    few = [replace(segment("dog", 10), mask=square(10))] * 2
    answer = list(
        propagate_tracks(ShiftPropagator(), frames([[s] for s in few], keys={0}), TrackerConfig(min_area=145))
    )
    assert [len(s.segments) for s in answer] == [1, 0]
