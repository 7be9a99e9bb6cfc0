"""Decoding, models and writing work at the same time: seconds are slept, so that no processor is fought for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from openavs.pipeline.pipeline import Pipeline, PipelineConfig
from openavs.stages.translators.base import Request, Translation
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import (
    AudioWindow,
    Box,
    Caption,
    Clip,
    ClipResult,
    Detection,
    Frame,
    ImageArray,
    Mask,
    Waveform,
)
from openavs.utils.concurrency import BackgroundWriter

STEP = 0.04
FRAMES = 12
MASK = Mask(mask_to_rle(np.ones((8, 8), dtype=np.bool_)))

Interval = tuple[str, float, float]


class Timeline:
    """Timeline of the work: an interval for each frame that was decoded, segmented or written."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []
        self._lock = threading.Lock()

    def work(self, what: str, steps: int = 1) -> None:
        started = time.monotonic()
        time.sleep(STEP * steps)
        with self._lock:
            self.intervals.append((what, started, time.monotonic()))

    def count(self, what: str) -> int:
        """Number of intervals of this kind so far."""
        with self._lock:
            return sum(name == what for name, _, _ in self.intervals)

    def spent(self, what: str) -> float:
        return sum(end - start for name, start, end in self.intervals if name == what)

    def together(self, one: str, two: str) -> float:
        """Seconds in which both were at work."""
        ours, theirs = ([(a, b) for name, a, b in self.intervals if name == which] for which in (one, two))
        return sum(max(0.0, min(b, d) - max(a, c)) for a, b in ours for c, d in theirs)


class Stages:
    """Captions and finds a dog; each frame takes a step."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline

    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        return [[Caption("dog", 1.0, w.start, w.end)] for w in windows]

    def translate(self, requests: Sequence[Request]) -> list[Translation]:
        return [Translation(tuple(("dog",) * bool(own) for own in r.frames), "none") for r in requests]

    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        self.timeline.work("models", len(images))
        return [[Detection((0.0, 0.0, 8.0, 8.0), "dog", 0.9)] for _ in images]

    def segment(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]]) -> list[list[Mask]]:
        return [[MASK] * len(own) for own in boxes]


def clip(timeline: Timeline, name: str = "clip", frames: int = FRAMES) -> Clip:
    times = tuple(i + 0.5 for i in range(frames))

    def source(wanted: frozenset[int] | None) -> Iterator[Frame]:
        for i in sorted(range(frames) if wanted is None else wanted):
            timeline.work("decode")
            yield Frame(i, times[i], np.full((8, 8, 3), i, dtype=np.uint8))

    sound = Waveform(np.full(frames * 1000, 0.5, dtype=np.float32), 1000)
    return Clip(name, times, 1.0, (8, 8), source, sound)


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


def pipeline(timeline: Timeline, batch: int) -> Pipeline:
    stages = Stages(timeline)
    return Pipeline(stages, stages, stages, stages, PipelineConfig(batch_frames=batch))


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_the_next_batch_is_decoded_while_the_models_work(timeline: Timeline, batch: int) -> None:
    """All of it but the first one, for which there is nothing to work on yet, also when a batch is many frames."""
    result = pipeline(timeline, batch)(clip(timeline))
    assert len(result.frames) == FRAMES
    hidden = timeline.together("decode", "models")
    assert hidden > 0.8 * (FRAMES - batch) * STEP, (hidden, timeline.intervals)
    assert hidden > 0.6 * (timeline.spent("decode") - 1.5 * batch * STEP)  # busy cores stretch the steps unevenly


def test_a_result_is_written_while_the_next_clip_is_looked_at(timeline: Timeline) -> None:
    """The writer waits until the models are at the next clip, except at the last; without overlap it would hang."""
    clips = [clip(timeline, str(i), frames=3) for i in range(4)]
    written: list[str] = []

    def write(result: ClipResult) -> None:
        written.append(result.clip)
        until = time.monotonic() + 10
        while len(written) < 4 and timeline.count("models") <= 3 * len(written):
            assert time.monotonic() < until, "nobody looks at the next clip meanwhile"
            time.sleep(STEP / 4)

    with BackgroundWriter(write, depth=2) as writer:
        for result in pipeline(timeline, 1).run(clips):
            writer.put(result)
    assert written == ["0", "1", "2", "3"]


def test_silence_is_neither_decoded_nor_looked_at(timeline: Timeline) -> None:
    """The silent half of a clip costs nothing: its frames are answered, and that is all."""
    whole = clip(timeline)
    assert whole.audio is not None
    whole.audio.samples[: FRAMES // 2 * 1000] = 0.0
    result = pipeline(timeline, 1)(whole)
    assert [frame.silent for frame in result.frames] == [True] * (FRAMES // 2) + [False] * (FRAMES // 2)
    assert len(timeline.intervals) == 2 * (FRAMES // 2)  # a decoding and a look for each frame that sounds
