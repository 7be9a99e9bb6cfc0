"""Figures of event times follow from known errors."""

from __future__ import annotations

import numpy as np
import pytest

from eval.experiments.event_times import NAMES, Figure, compare, frames_of, match, summarize
from openavs.structures.types import Event
from openavs.synthetic.categories import KINDS
from openavs.synthetic.events import SoundEvent

DOG, CAT = "dog barking", "cat meowing"


def found(phrase: str, onset: float, offset: float) -> Event:
    return Event(phrase, onset, offset, 0.9, 25.0)


def counts(truth: list[SoundEvent], events: list[Event]) -> dict[str, int]:
    return dict(zip(NAMES, compare(truth, events, 4).tolist(), strict=True))


def test_perfect_events_have_no_errors() -> None:
    truth = [SoundEvent("dog", 1, 0.5, 1.5), SoundEvent("cat", 2, 1.0, 3.0)]
    given = counts(truth, [found(DOG, 0.5, 1.5), found(CAT, 1.0, 3.0)])
    assert (given["events"], given["within"], given["false"]) == (2, 2, 0)
    assert given["frames_right"] == given["frames_found"] == given["frames_true"] == 76  # two of the dog's by half


def test_each_end_may_be_80_ms_off() -> None:
    truth = [SoundEvent("dog", 1, 1.0, 2.0)]
    for onset, offset, within in ((0.92, 2.08, 1), (0.9, 2.0, 0), (1.0, 2.12, 0)):
        given = counts(truth, [found(DOG, onset, offset)])
        assert given["within"] == within
    assert given["onset"] == 1 and given["offset"] == 0


def test_an_event_of_another_category_is_false_and_the_true_one_is_missed() -> None:
    given = counts([SoundEvent("dog", 1, 1.0, 2.0)], [found(CAT, 1.0, 2.0)])
    assert (given["within"], given["false"], given["frames_right"]) == (0, 1, 0)


def test_the_longest_overlap_is_the_match_and_each_event_is_in_one_pair() -> None:
    truth = [SoundEvent("dog", 1, 0.0, 1.0), SoundEvent("dog", 2, 2.0, 3.0)]
    pairs = match(truth, [found(DOG, 0.8, 2.9), found(DOG, 0.0, 0.7)])
    assert [(true.onset, event.onset) for true, event in pairs] == [(0.0, 0.0), (2.0, 0.8)]


def test_frames_count_if_half_of_them_is_covered() -> None:
    row = next(i for i, kind in enumerate(KINDS) if kind.name == "dog")
    assert np.flatnonzero(frames_of([("dog", 0.02, 0.11)], 1)[row]).tolist() == [0, 1, 2]
    assert np.flatnonzero(frames_of([("dog", 0.03, 0.09)], 1)[row]).tolist() == [1]


def test_intervals_enclose_the_figures_and_a_constant_has_none_of_width() -> None:
    rows = np.array([[2, 2, 2, 2, 2, 0, 50, 50, 50], [2, 0, 1, 0, 2, 1, 20, 50, 50]] * 10)
    figures = summarize(rows)
    assert figures["within"].value == 0.5 and figures["within"].low < 0.5 < figures["within"].high
    assert figures["frame_f"].value == pytest.approx(0.7)
    assert summarize(rows[:1])["within"] == Figure(1.0, 1.0, 1.0)
