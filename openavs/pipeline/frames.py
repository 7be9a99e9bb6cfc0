"""Audio windows and frame batches: the audio of a frame, decoding ahead of the models, and repeated frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from openavs.config.recipe import PipelineConfig
from openavs.errors import InputError
from openavs.models.device import run_with_oom_backoff
from openavs.pipeline.context import RunContext
from openavs.stages.contracts import call_stage
from openavs.structures.types import AudioWindow, Caption, Clip, Event, Frame, ImageArray, Waveform
from openavs.utils.concurrency import batched, prefetch

T = TypeVar("T")

BATCH_PIXELS = 1 << 25
"""Upper limit of the pixels in a batch of frames: eight 4K frames are processed one or two at a time."""


def audio_windows(clip: Clip, length: float, context: float | None = None) -> list[AudioWindow]:
    """Return the audio window of every frame of a clip.

    Args:
        clip: the clip, with its audio decoded.
        length: seconds of each window.
        context: seconds of a longer window around the same moment; None for none.

    Raises:
        InputError: the clip has no audio track.
    """
    if clip.audio is None:
        raise InputError(f"{clip.source or clip.id} has no sound track; give its sound with --audio FILE")
    return [audio_window(clip.audio, at, clip.fps, length, clip.labels, context) for at in clip.times]


def audio_window(
    audio: Waveform,
    at: float,
    fps: float,
    length: float,
    labels: tuple[str, ...] = (),
    context: float | None = None,
) -> AudioWindow:
    """Return the audio of a frame: `length` seconds around the middle of the frame interval that `at` falls into.

    At one frame per second and one second of audio this is AVSBench's pairing: frame i with second i.
    """
    # The small constant keeps a time such as 2.9999999 in the interval that starts at 3.
    middle = (math.floor(at * fps + 1e-6) + 0.5) / fps
    start, end = max(middle - length / 2, 0.0), min(middle + length / 2, audio.duration)
    around = None if context is None else audio.cut(middle - context / 2, middle + context / 2)
    return AudioWindow(audio.cut(start, end), start, max(start, end), labels, around)


def frame_events(
    clip: Clip, events: Sequence[Event], frames: Sequence[int], longest: float
) -> Iterator[tuple[int, tuple[Caption, ...]]]:
    """Yield some frames of a clip with the events that sound at each of them as captions, best first.

    A frame stands for the interval of `1 / fps` seconds that its time falls into, at most `longest` seconds around its
    middle; a caption's start and end are those of its event.
    """
    for i in frames:
        middle = (math.floor(clip.times[i] * clip.fps + 1e-6) + 0.5) / clip.fps
        half = min(1 / clip.fps, longest) / 2
        own = [event for event in events if event.onset < middle + half and event.offset > middle - half]
        best: dict[str, Event] = {}
        for event in sorted(own, key=lambda event: -event.score):
            best.setdefault(event.phrase, event)
        yield i, tuple(Caption(e.phrase, e.score, e.onset, e.offset) for e in best.values())


def frame_batches(
    clip: Clip, wanted: frozenset[int], settings: PipelineConfig, context: RunContext
) -> Iterator[list[Frame]]:
    """Yield the wanted frames in order, in batches; the next batch is decoded while the models work on one.

    A frame that repeats the one before shares its array. A batch counts as done when the next one is requested.
    """
    if not wanted:
        return
    deduplicator, done = FrameDeduplicator(settings.max_diff), 0
    frames = deduplicator.share(clip.frames(wanted))
    batches = batches_of(frames, settings, lambda frame: frame)
    context.progress("localize", 0, len(wanted))
    for batch in context.timed_items("decode", prefetch(batches, depth=1)):
        yield batch
        done += len(batch)
        context.progress("localize", done, len(wanted))
    if deduplicator.near:
        context.warn(f"{deduplicator.near} of {done} frames had hardly changed and reuse the frame before them")


def batches_of(items: Iterable[T], settings: PipelineConfig, frame_of: Callable[[T], Frame]) -> Iterator[list[T]]:
    """Yield items that have a frame each in batches of at most `batch_frames` and `BATCH_PIXELS`."""
    return batched(items, settings.batch_frames, lambda item: frame_of(item).image.size // 3, BATCH_PIXELS)


CELLS = 32
"""Rows and columns of the grid in which two frames are compared; an object of a thousandth of the area fills a cell."""


def max_cell_difference(one: ImageArray, two: ImageArray) -> float:
    """Return the mean absolute difference within the grid cell that changed most, in gray levels [0, 255].

    The maximum over `CELLS` x `CELLS` cells, because the mean of the whole frame hides a small object that moves; the
    mean within a cell, because noise and compression make the maximum of single pixels large everywhere. Frames of
    different sizes differ by 255.
    """
    if one.shape != two.shape:
        return 255.0
    difference = np.maximum(one, two) - np.minimum(one, two)
    edges = [np.unique(np.linspace(0, n, min(CELLS, n) + 1).astype(int)) for n in difference.shape[:2]]
    sums = np.add.reduceat(difference.sum(axis=2, dtype=np.uint32), edges[0][:-1], axis=0)
    sums = np.add.reduceat(sums, edges[1][:-1], axis=1)
    areas = np.outer(np.diff(edges[0]), np.diff(edges[1]))
    return float((sums / (3 * areas)).max())


class FrameDeduplicator:
    """Replaces the array of a frame that repeats the frame before it.

    Args:
        max_diff: the largest `max_cell_difference` of a repetition: 0 for the same bits, None to disable. A frame is
            compared with the first of its run, not with its neighbor, so that a slow change does not go unnoticed.

    Attributes:
        near: number of frames that were replaced although their bits differ.
    """

    def __init__(self, max_diff: float | None = 0.0) -> None:
        self.max_diff = max_diff
        self.near = 0

    def share(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yield the frames in order, repeated ones with the array of the first."""
        last: ImageArray | None = None
        for frame in frames:
            if last is not None and self._is_repeated(last, frame.image):
                yield replace(frame, image=last)
            else:
                last = frame.image
                yield frame

    def _is_repeated(self, last: ImageArray, image: ImageArray) -> bool:
        if last is image or self.max_diff is None:
            return last is image
        if _is_equal(last, image):
            return True
        close = self.max_diff > 0 and max_cell_difference(last, image) <= self.max_diff
        self.near += close
        return close


class FrameMemo:
    """Memoizes stage outputs by the frame's array.

    Entries live for two batches, because repetitions are consecutive.
    """

    def __init__(self) -> None:
        self._images: list[ImageArray] = []
        self._last: list[ImageArray] = []  # kept alive, so that no other array gets its id
        self._outputs: dict[tuple[Hashable, ...], Any] = {}

    def begin(self, images: Sequence[ImageArray]) -> None:
        """Start a batch; outputs for all but the last image of the batch before are dropped."""
        self._last, self._images = self._images[-1:], list(images)
        last = [id(image) for image in self._last]
        self._outputs = {key: output for key, output in self._outputs.items() if key[1] in last}

    def call(self, method: str, backend: Any, *parallel: Sequence[Sequence[Hashable]]) -> list[Any]:
        """Return `call_stage(method, backend, images, *parallel)`, computed for images that have no entry yet.

        Args:
            method: the stage's method; it takes a list of images and sequences parallel to it.
            backend: the stage.
            parallel: one sequence of hashable items per image of the batch, such as its phrases.
        """
        images = self._images
        keys = [(method, id(image), *map(tuple, own)) for image, *own in zip(images, *parallel, strict=True)]
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._outputs}
        places = sorted(new.values())
        if places:
            inputs = [[own[i] for i in places] for own in (images, *parallel)]
            outputs = run_with_oom_backoff(partial(call_stage, method, backend), *inputs)
            self._outputs |= {keys[i]: output for i, output in zip(places, outputs, strict=True)}
        return [self._outputs[key] for key in keys]


def _is_equal(one: ImageArray, two: ImageArray) -> bool:
    """Compare bit for bit; a few rows first, since most frames differ everywhere."""
    return one.shape == two.shape and np.array_equal(one[::64], two[::64]) and np.array_equal(one, two)
