"""Who is who: key frames, matching, and both ways of following things, on masks drawn by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from openavs.errors import InputError
from openavs.stages.trackers import iou as iou_tracker
from openavs.stages.trackers.association import (
    CROSS_PHRASE_MIN_IOU,
    SAME_PHRASE_BONUS,
    key_frames,
    mask_box,
    mask_iou,
    match_tracks,
    remaining_rejections,
)
from openavs.stages.trackers.base import TrackedFrame, Tracker
from openavs.stages.trackers.iou import IouTracker
from openavs.stages.trackers.propagation import TrackerConfig, propagate_tracks
from openavs.structures.types import RLE, Frame, ImageArray, Rejection, Segment, mask_to_rle

SIZE = (40, 120)
FPS = 8.0


def square(x: float, y: float = 10, side: int = 12) -> RLE:
    """A filled square with its top left corner at (x, y), cut off at the picture's edges."""
    mask = np.zeros(SIZE, dtype=np.bool_)
    left, top = round(x), round(y)
    mask[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = True
    return mask_to_rle(mask)


def segment(phrase: str, x: float, y: float = 10, score: float = 0.5, side: int = 12) -> Segment:
    mask = square(x, y, side)
    return Segment(mask, mask_box(mask), phrase, score)


def frames(
    rows: Sequence[Sequence[Segment]],
    *,
    asked: Sequence[Sequence[str]] | None = None,
    keys: Iterable[int] | None = None,
) -> list[TrackedFrame]:
    """Sightings of one clip, one per row; what is asked is what is found, unless it is given."""
    keys = set(range(len(rows)) if keys is None else keys)
    sightings = []
    for i, row in enumerate(rows):
        phrases = tuple(asked[i]) if asked is not None else tuple(dict.fromkeys(s.phrase for s in row))
        if not phrases:
            continue
        shown = Frame(i, i / FPS, np.zeros((*SIZE, 3), dtype=np.uint8))
        missing = tuple(Rejection(p, "not found") for p in phrases if p not in {s.phrase for s in row} and i in keys)
        sightings.append(TrackedFrame(shown, phrases, tuple(row) if i in keys else (), missing, i in keys))
    return sightings


def tracks(sightings: Iterable[TrackedFrame]) -> dict[int, dict[str, list[int]]]:
    """Track ids by frame and phrase."""
    found: dict[int, dict[str, list[int]]] = {}
    for sighting in sightings:
        row = found.setdefault(sighting.frame.index, {})
        for s in sighting.segments:
            assert s.track is not None
            row.setdefault(s.phrase, []).append(s.track)
    return found


# ------------------------------------------------------------------------------------------------------ key frames


@pytest.mark.parametrize(
    ("asked", "every", "keys"),
    [
        ("aaaaaa", 2, {0, 2, 4}),
        ("aaaaaa", 1, {0, 1, 2, 3, 4, 5}),
        ("aabbbb", 3, {0, 2, 5}),  # where the prompts change, the count begins anew
        ("aa..aa", 9, {0, 4}),  # and after every silence
        ("......", 2, set()),
        ("", 2, set()),
    ],
)
def test_key_frames(asked: str, every: int, keys: set[int]) -> None:
    assert key_frames(["" if phrase == "." else phrase for phrase in asked], every) == keys


def test_the_order_of_the_prompts_is_no_change() -> None:
    assert key_frames([("dog", "bell"), ("bell", "dog")], 9) == {0}


# -------------------------------------------------------------------------------------------------------- matching


def test_overlap_of_masks() -> None:
    overlap = mask_iou([square(0), square(6), square(100, side=0)], [square(0), square(50)])
    assert overlap == pytest.approx(np.array([[1, 0], [1 / 3, 0], [0, 0]]))
    assert mask_iou([], [square(0)]).shape == (0, 1) and mask_iou([square(0)], []).shape == (1, 0)


def test_box_of_a_mask() -> None:
    assert mask_box(square(3, 5, 7)) == (3.0, 5.0, 10.0, 12.0)
    assert mask_box(square(0, 0, 0)) == (0.0, 0.0, 0.0, 0.0)


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


def test_the_same_thing_by_another_name_needs_a_great_overlap() -> None:
    none = np.zeros((1, 1), dtype=np.bool_)
    assert match_tracks(np.array([[0.6]]), none, 0.2) == [0]
    assert match_tracks(np.array([[0.4]]), none, 0.2) == [None]
    assert match_tracks(np.array([[0.4]]), ~none, 0.2) == [0]


def test_a_phrase_that_is_mixed_up_does_not_swap_things() -> None:
    """The dog's phrase comes back on the cat, whose own find is missing: it is the cat."""
    overlap = np.array([[0.25], [0.9]])  # with the dog, with the cat
    assert match_tracks(overlap, np.array([[True], [False]]), 0.2) == [1]


def test_what_a_tracker_still_sees_was_not_missed() -> None:
    dropped = [Rejection("dog", "not found"), Rejection("bell", "below threshold"), Rejection("dog", "verifier")]
    assert remaining_rejections(dropped, [segment("dog", 0)]) == (dropped[1], dropped[2])


# ------------------------------------------------------------------------------------------------- without a model


def test_moving_things_keep_their_ids() -> None:
    rows = [[segment("dog", 4 * i), segment("bell", 100 - 4 * i, 25)] for i in range(20)]
    found = tracks(IouTracker().track(frames(rows)))
    assert all(row == {"dog": [0], "bell": [1]} for row in found.values())


def test_two_of_a_kind_cross_without_changing_ids() -> None:
    """They pass through each other; only their speed says who is who afterwards."""
    rows = [[segment("dog", 6 * i), segment("dog", 90 - 6 * i)] for i in range(16)]
    ids = [[s.track for s in sighting.segments] for sighting in IouTracker().track(frames(rows))]
    assert ids == [[0, 1]] * 16


def test_one_hides_behind_another_and_comes_out() -> None:
    rows = [[segment("dog", 6 * i)] + ([] if 5 < i < 10 else [segment("bell", 45, 10, side=20)]) for i in range(16)]
    found = tracks(IouTracker(max_gap_seconds=0).track(frames(rows)))
    assert found[0] == {"dog": [0], "bell": [1]} and found[15] == {"dog": [0], "bell": [1]}


def test_a_thing_that_stops_sounding_keeps_its_id() -> None:
    rows = [[segment("dog", 10 + i)] if i < 8 or i > 40 else [segment("bell", 90)] for i in range(48)]
    found = tracks(IouTracker().track(frames(rows)))
    assert found[0]["dog"] == [0] and found[47]["dog"] == [0]
    assert "dog" not in found[20]


def test_what_was_forgotten_or_is_too_far_away_is_a_new_thing() -> None:
    rows = [[segment("dog", 10)] if i in (0, 40) else [segment("bell", 90)] for i in range(41)]
    assert tracks(IouTracker(max_age_seconds=2).track(frames(rows)))[40]["dog"] == [2]
    far = frames([[segment("dog", 0)], [segment("dog", 100)]])
    assert tracks(IouTracker().track(far)) == {0: {"dog": [0]}, 1: {"dog": [1]}}


def test_a_missed_moment_is_filled_with_the_mask_in_between() -> None:
    rows = [[segment("dog", 0, score=0.9)], [], [], [segment("dog", 6, score=0.7)]]
    answer = list(IouTracker(max_gap_seconds=0.5).track(frames(rows, asked=[["dog"]] * 4)))
    assert [s.frame.index for s in answer] == [0, 1, 2, 3]
    assert [s.segments[0].mask for s in answer] == [square(0), square(2), square(4), square(6)]
    assert [s.segments[0].score for s in answer] == [0.9, 0.7, 0.7, 0.7]
    assert all(s.rejected == () and s.segments[0].track == 0 for s in answer)
    for fill, asked in ((0.1, [["dog"]] * 4), (0.5, [["dog"], ["bell"], ["bell"], ["dog"]])):
        alone = list(IouTracker(max_gap_seconds=fill).track(frames(rows, asked=asked)))
        assert [len(s.segments) for s in alone] == [1, 0, 0, 1]
        assert alone[1].rejected != ()


@pytest.mark.parametrize("shift", [(0, 0), (30, 5), (-30, -9), (119, 0), (400, 0), (-400, 3), (0, 41), (5, -40)])
def test_a_moved_mask_is_cut_off_at_the_edges(shift: tuple[int, int]) -> None:
    assert iou_tracker._shift(square(50, 10), *shift) == square(50 + shift[0], 10 + shift[1])


def test_frames_are_held_back_no_longer_than_they_can_be_filled() -> None:
    given: list[int] = []

    def source() -> Iterable[TrackedFrame]:
        for sighting in frames([[segment("dog", 10)]] * 30):
            given.append(sighting.frame.index)
            yield sighting

    for answer in IouTracker(max_gap_seconds=0.5).track(source()):
        assert given[-1] - answer.frame.index <= 0.5 * FPS + 1


def test_options_of_the_tracker_without_a_model() -> None:
    assert isinstance(IouTracker(), Tracker)
    for options in ({"min_iou": 0.0}, {"max_age_seconds": -1.0}):
        with pytest.raises(InputError, match="iou: "):
            IouTracker(**options)


# ------------------------------------------------------------- with a model that carries masks: here, by their speed


@dataclass
class Drift:
    """Carries a mask by a known motion (pixels a frame, by the rows a mask lies in); hides it in given frames."""

    speeds: dict[int, int] = field(default_factory=dict)
    hidden: frozenset[int] = frozenset()
    log: list[tuple[str, int]] = field(default_factory=list)

    def init_track(self, at: int, image: ImageArray, mask: RLE) -> dict[str, Any]:
        self.log.append(("begin", at))
        return {"mask": mask, "at": at}

    def propagate(
        self, memory: dict[str, Any], at: int, image: ImageArray, backward: bool = False
    ) -> tuple[RLE, float]:
        self.log.append(("back" if backward else "carry", at))
        assert at == memory["at"] + (-1 if backward else 1)  # neighbouring frames only
        x, y, _, _ = mask_box(memory["mask"])
        step = self.speeds.get(int(y), 0) * (-1 if backward else 1)
        moved = square(x + step, y)
        memory.update(mask=moved, at=at)
        return (square(0, 0, 0) if at in self.hidden else moved), 0.75

    def correct(self, memory: dict[str, Any], at: int, image: ImageArray, mask: RLE) -> None:
        self.log.append(("correct", at))
        memory.update(mask=mask)


def test_things_are_carried_between_key_frames() -> None:
    rows = [[segment("dog", 3 * i)] for i in range(9)]
    carrier = Drift({10: 3})
    answer = list(propagate_tracks(carrier, frames(rows, keys={0, 4, 8}), TrackerConfig()))
    assert [s.segments[0].mask for s in answer] == [square(3 * i) for i in range(9)]
    assert {s.segments[0].track for s in answer} == {0}
    assert answer[1].segments[0].mask_score == 0.75 and answer[1].segments[0].box == (3.0, 10.0, 15.0, 22.0)
    assert [entry for entry in carrier.log if entry[0] != "carry"] == [("begin", 0), ("correct", 4), ("correct", 8)]


def test_a_new_thing_is_carried_back_to_the_key_frame_before() -> None:
    asked = [["dog", "bell"]] * 9
    rows = [[segment("dog", 3 * i)] + ([segment("bell", 60, 25, 0.9)] if i == 8 else []) for i in range(9)]
    answer = list(propagate_tracks(Drift({10: 3}), frames(rows, asked=asked, keys={0, 4, 8}), TrackerConfig()))
    found = tracks(answer)
    assert found[4] == {"dog": [0]}  # the key frame itself was looked at, and there it was not found
    assert all(found[i] == {"bell": [1], "dog": [0]} for i in (5, 6, 7, 8))
    assert [s.phrase for s in answer[7].segments] == ["bell", "dog"]  # best first
    assert answer[4].rejected == (Rejection("bell", "not found"),)
    assert answer[2].rejected == (Rejection("bell", "not tracked"),)


def test_carrying_back_stops_where_the_thing_is_hidden_or_is_another() -> None:
    asked = [["dog", "cat"]] * 9
    rows = [[segment("dog", 10, 10)] if i < 8 else [segment("dog", 10, 10), segment("cat", 50, 25)] for i in range(9)]
    found = tracks(
        propagate_tracks(Drift(hidden=frozenset({5})), frames(rows, asked=asked, keys={0, 8}), TrackerConfig())
    )
    assert [i for i in found if "cat" in found[i]] == [6, 7, 8]
    merged = [[segment("dog", 10)] if i < 8 else [segment("dog", 50, 25), segment("cat", 10, 22)] for i in range(9)]
    found = tracks(propagate_tracks(Drift({22: 0}), frames(merged, asked=asked, keys={0, 8}), TrackerConfig()))
    assert "cat" in found[7]


def test_a_thing_is_not_carried_back_to_where_nobody_asked_for_it() -> None:
    asked = [["dog", "bell"]] * 5 + [["dog"]] * 3 + [["dog", "bell"]]
    rows = [[segment("dog", 10)] if i < 8 else [segment("dog", 10), segment("bell", 60, 25)] for i in range(9)]
    found = tracks(propagate_tracks(Drift(), frames(rows, asked=asked, keys={0, 8}), TrackerConfig()))
    assert [i for i in found if "bell" in found[i]] == [1, 2, 3, 4, 8]


def test_carrying_back_does_not_leap_over_silence() -> None:
    asked = [["dog", "bell"]] * 3 + [[]] * 3 + [["dog", "bell"]]
    rows = [[segment("dog", 10)]] * 6 + [[segment("dog", 10), segment("bell", 60)]]
    carrier = Drift()
    found = tracks(propagate_tracks(carrier, frames(rows, asked=asked, keys={0, 6}), TrackerConfig()))
    assert found == {0: {"dog": [0]}, 1: {"dog": [0]}, 2: {"dog": [0]}, 6: {"dog": [0], "bell": [1]}}
    assert ("back", 2) not in carrier.log


def test_only_what_sounds_is_reported_but_all_keep_their_ids() -> None:
    asked = [["dog"]] * 4 + [["bell"]] * 4 + [["dog", "bell"]] * 4
    rows = [[segment(p, 10 if p == "dog" else 70) for p in phrases] for phrases in asked]
    found = tracks(propagate_tracks(Drift(), frames(rows, asked=asked, keys=key_frames(asked, 4)), TrackerConfig()))
    assert [found[i] for i in (3, 7, 11)] == [{"dog": [0]}, {"bell": [1]}, {"dog": [0], "bell": [1]}]


def test_a_thing_keeps_its_id_under_another_name() -> None:
    asked = [["dog"]] * 2 + [["puppy"]] * 2 + [["dog"]] * 2
    rows = [[segment(phrases[0], 10)] for phrases in asked]
    found = tracks(propagate_tracks(Drift(), frames(rows, asked=asked, keys={0, 2, 4}), TrackerConfig()))
    assert [list(row.items()) for row in found.values()] == [[(p[0], [0])] for p in asked]


def test_a_thing_that_is_missed_too_often_is_let_go() -> None:
    rows = [[segment("dog", 10)]] + [[]] * 9
    asked = [["dog"]] * 10
    found = tracks(
        propagate_tracks(
            Drift(), frames(rows, asked=asked, keys=range(0, 10, 2)), TrackerConfig(max_missed_keyframes=2)
        )
    )
    assert [i for i in found if found[i]] == list(range(7))  # missed at 2, 4 and 6; at 6 it is still seen
    again = frames([*rows[:9], [segment("dog", 10)]], asked=asked, keys=[0, 2, 4, 6, 8, 9])
    assert tracks(propagate_tracks(Drift(), again, TrackerConfig(max_missed_keyframes=2)))[9] == {
        "dog": [1]
    }  # its id is not given again


def test_there_are_never_more_things_than_may_be_followed() -> None:
    rows = [[segment("bird", 13 * j, 10) for j in range(8)]] * 2
    carrier = Drift()
    found = tracks(propagate_tracks(carrier, frames(rows), TrackerConfig(max_objects=3)))
    assert sorted(found[0]["bird"]) == list(range(8))
    assert carrier.log.count(("carry", 1)) == 3


def test_what_a_find_covers_is_not_reported_twice() -> None:
    """A follower whose name does not match the find, and which is not the same, still lies under it."""
    rows = [[segment("dog", 10)], [segment("cat", 13)]]
    answer = list(propagate_tracks(Drift(), frames(rows, asked=[["dog"], ["dog", "cat"]]), TrackerConfig()))
    assert [s.phrase for s in answer[1].segments] == ["cat"]


def test_frames_left_over_at_the_end_are_followed_too() -> None:
    answer = list(propagate_tracks(Drift(), frames([[segment("dog", 10)]] * 5, keys={0}), TrackerConfig()))
    assert [len(s.segments) for s in answer] == [1] * 5
    assert list(propagate_tracks(Drift(), [], TrackerConfig())) == []


def test_tiny_masks_are_no_segments() -> None:
    few = [replace(segment("dog", 10), mask=square(10))] * 2
    answer = list(propagate_tracks(Drift(), frames([[s] for s in few], keys={0}), TrackerConfig(min_area=145)))
    assert [len(s.segments) for s in answer] == [1, 0]
