"""Audio windows and frame batches: which audio belongs to a frame, and decoding ahead of the models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from openavs.config.recipe import PipelineConfig
from openavs.errors import InputError
from openavs.pipeline.context import RunContext
from openavs.pipeline.dedup import FrameDeduplicator
from openavs.structures.types import AudioWindow, Caption, Clip, Event, Frame, Waveform
from openavs.utils.concurrency import batched, prefetch

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
    batches = batched(frames, settings.batch_frames, lambda frame: frame.image.size // 3, BATCH_PIXELS)
    context.progress("localize", 0, len(wanted))
    for batch in context.timed_items("decode", prefetch(batches, depth=1)):
        yield batch
        done += len(batch)
        context.progress("localize", done, len(wanted))
    if deduplicator.near:
        context.warn(f"{deduplicator.near} of {done} frames had hardly changed and reuse the frame before them")
