"""Frames have the captions of what sounds at them, by the exact times of a captioner that gives events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from openavs.errors import InvalidOutputError
from openavs.pipeline.frames import frame_events
from openavs.pipeline.pipeline import Pipeline, PipelineConfig
from openavs.results.serialization import result_from_json, result_to_json
from openavs.stages.detectors.base import Detector
from openavs.stages.segmenters.box import BoxSegmenter
from openavs.stages.translators.lexicon_translator import IdentityTranslator
from openavs.structures.types import Clip, Detection, Event, Frame, ImageArray, Waveform

RATE = 1000
SECONDS = 4
DOG = Event("dog", 0.32, 1.56, 0.9, 25.0, (0.5, 0.9, 0.7))
BELL = Event("bell", 1.48, 2.0, 0.6, 25.0)
AGAIN = Event("dog", 3.04, 3.08, 0.7, 25.0)


class GivenEvents:
    """An event captioner with fixed answers; it cannot caption windows."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.answer, self.calls = list(events), 0

    def events(self, audio: Waveform) -> list[Event]:
        self.calls += 1
        return self.answer


class Columns:
    """Finds each phrase in a column of its own."""

    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        return [[Detection((4.0 * i, 0.0, 4.0 * i + 3, 12.0), p, 0.9) for i, p in enumerate(own)] for own in phrases]


def clip(fps: float, *, loud: bool = True, audio: bool = True) -> Clip:
    times = tuple((i + 0.5) / fps for i in range(round(SECONDS * fps)))
    image = np.zeros((12, 16, 3), dtype=np.uint8)

    def frames(wanted: frozenset[int] | None) -> Any:
        return (Frame(i, at, image) for i, at in enumerate(times) if wanted is None or i in wanted)

    samples = np.full(SECONDS * RATE, 0.1 if loud else 0.0, dtype=np.float32)
    return Clip("scene", times, fps, (12, 16), frames, Waveform(samples, RATE) if audio else None)


def pipeline(events: Sequence[Event], captioner: Any = None, **settings: Any) -> Pipeline:
    detector: Detector = Columns()
    found = captioner or GivenEvents(events)
    return Pipeline(found, IdentityTranslator(), detector, BoxSegmenter(), PipelineConfig(**settings))


def texts(events: Sequence[Event], fps: float, longest: float = 1.0) -> list[list[str]]:
    at = clip(fps)
    return [[caption.text for caption in own] for _, own in frame_events(at, events, range(len(at.times)), longest)]


def test_a_frame_has_the_events_of_its_own_interval() -> None:
    assert texts([DOG, BELL, AGAIN], 1.0) == [["dog"], ["dog", "bell"], [], ["dog"]]
    assert texts([DOG, BELL], 2.0) == [["dog"], ["dog"], ["dog", "bell"], ["dog", "bell"], [], [], [], []]


def test_at_25_frames_a_second_the_times_are_exact() -> None:
    found = texts([BELL], 25.0)
    assert [i for i, own in enumerate(found) if own] == list(range(37, 50))  # 1.48 to 2.0 s


def test_slow_frames_have_the_events_around_their_middle_only() -> None:
    assert texts([DOG], 0.5) == [["dog"], []]  # 0 to 2 s, of which 0.5 to 1.5 s count
    assert texts([Event("dog", 0.0, 0.4, 0.9, 25.0)], 0.5) == [[], []]
    assert texts([Event("dog", 0.0, 0.4, 0.9, 25.0)], 0.5, longest=2.0) == [["dog"], []]


def test_the_captions_of_a_frame_have_the_times_of_their_events_and_the_best_comes_first() -> None:
    twice = Event("dog", 1.6, 1.8, 0.95, 25.0)
    _, captions = list(frame_events(clip(1.0), [DOG, BELL, twice], range(4), 1.0))[1]
    assert [(c.text, c.score, c.start, c.end) for c in captions] == [("dog", 0.95, 1.6, 1.8), ("bell", 0.6, 1.48, 2.0)]


def test_an_event_that_ends_where_a_frame_begins_is_not_at_it() -> None:
    assert texts([Event("dog", 0.5, 1.0, 0.9, 25.0)], 1.0) == [["dog"], [], [], []]


@pytest.mark.parametrize("fps", [1.0, 5.0])
def test_frames_request_what_sounds_at_them(fps: float) -> None:
    result = pipeline([DOG, BELL])(clip(fps))
    for frame in result.frames:
        start, end = frame.index / fps, (frame.index + 1) / fps
        sounding = {event.phrase for event in (DOG, BELL) if event.onset < end and event.offset > start}
        assert {prompt.phrase for prompt in frame.prompts} == sounding
        assert {segment.phrase for segment in frame.segments} == sounding


def test_the_result_has_the_exact_events_and_survives_json() -> None:
    result = pipeline([DOG, BELL])(clip(1.0))
    assert result.events == (DOG, BELL)
    assert result_from_json(json.loads(json.dumps(result_to_json(result)))) == result


def test_the_clip_is_captioned_once_and_silent_frames_have_no_captions() -> None:
    captioner = GivenEvents([DOG])
    result = pipeline([], captioner)(clip(5.0))
    assert captioner.calls == 1
    assert not any(frame.silent for frame in result.frames)
    silent = pipeline([], captioner)(clip(1.0, loud=False))
    assert captioner.calls == 1 and all(frame.silent and not frame.captions for frame in silent.frames)
    assert silent.events == ()


def test_frames_in_which_nothing_was_found_are_counted() -> None:
    result = pipeline([BELL])(clip(1.0))
    assert "3 of 4 audible frames had no caption" in result.warnings


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([BELL, DOG], "events out of order"),
        ([Event("dog", 1.0, 0.5, 0.9, 25.0)], "from 1.0 to 0.5 s"),
        ([Event("dog", 0.0, 0.5, float("nan"), 25.0)], "score nan"),
        ([("dog", 0.0)], "an object of type tuple"),
        (None, r"nothing \(None\)"),
    ],
)
def test_invalid_events_are_refused(answer: Any, message: str) -> None:
    class Broken:
        def events(self, audio: Waveform) -> Any:
            return answer

    with pytest.raises(InvalidOutputError, match=message):
        pipeline([], Broken())(clip(1.0))
