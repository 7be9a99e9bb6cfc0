"""Spans of a clip: consecutive frames with a caption or a thing, and the texts that name them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from openavs.errors import InputError
from openavs.results.serialization import result_to_json
from openavs.search.spans import Span, clip_spans
from openavs.structures.types import ClipResult, Correction, Event
from tests.search.conftest import BOX, ROOM, YARD, Sound, result_of


def spans_of(result: ClipResult) -> dict[tuple[str, bool], Span]:
    return {(span.phrase, span.seen): span for span in clip_spans(result_to_json(result))[0]}


def test_a_caption_and_its_thing_are_spans_that_name_each_other() -> None:
    spans = spans_of(result_of("yard", *YARD))
    assert set(spans) == {("dog barking", False), ("dog", True), ("Door", False)}
    sound, thing = spans["dog barking", False], spans["dog", True]
    assert (sound.start, sound.end, sound.score, sound.box) == (1.0, 4.0, 0.8, None)
    assert (thing.start, thing.end, thing.box, thing.track) == (1.0, 4.0, BOX, 0)
    assert set(sound.names) == set(thing.names) == {"dog barking", "dog"}


def test_the_frame_is_the_one_with_the_best_score() -> None:
    thing = spans_of(result_of("yard", *YARD))["dog", True]
    assert (thing.frame, thing.time, round(thing.score, 2)) == (3, 3.5, 0.73)


def test_a_pause_separates_spans() -> None:
    bell = [Sound("Bell", "bell", 0, 2), Sound("Bell", "bell", 4, 6)]
    spans, length = clip_spans(result_to_json(result_of("clip", *bell)))
    assert [(s.start, s.end) for s in spans if not s.seen] == [(0.0, 2.0), (4.0, 6.0)] and length == 6.0


def test_classes_name_their_spans() -> None:
    spans = spans_of(result_of("room", *ROOM))
    assert spans["piano", True].label == "instrument"
    assert all("instrument" in spans[key].names for key in (("piano", True), ("Music", False)))


def test_events_have_their_exact_times_and_replace_their_captions() -> None:
    result = replace(result_of("yard", *YARD), events=(Event("dog barking", 1.24, 3.88, 0.9, 25.0),))
    sound = spans_of(result)["dog barking", False]
    assert (sound.start, sound.end, sound.score, sound.frame) == (1.24, 3.88, 0.9, 2)
    assert set(sound.names) == {"dog barking", "dog"}


def test_a_thing_has_the_times_that_a_person_gave_its_track() -> None:
    """Frames outside the corrected time have no segment; the first and the last are cut to it."""
    result = result_of("yard", *YARD)
    spans = (Correction("span", None, 0, "dog", [0.5, 3.0]), Correction("span", None, 0, "dog", [1.3, 3.6]))
    thing = spans_of(replace(result, corrections=spans))["dog", True]
    assert (thing.start, thing.end) == (1.3, 3.6)
    other = replace(result, corrections=(Correction("span", None, 7, "cat", [1.3, 3.6]),))
    assert spans_of(other)["dog", True] == spans_of(result)["dog", True]


def test_a_caption_without_a_score_counts_as_certain() -> None:
    data = result_to_json(result_of("yard", *YARD))
    for frame in data["frames"]:
        for caption in frame["captions"]:
            caption["score"] = None
    assert {span.score for span in clip_spans(data)[0] if not span.seen} == {1.0}


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([], InputError),
        ({"format": 2}, InputError),
        ({"format": 1}, KeyError),
        ({"format": 1, "frames": [{"time": float("nan")}]}, ValueError),
        ({"format": 1, "frames": [3]}, TypeError),
    ],
)
def test_other_data_are_refused(data: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        clip_spans(data)
