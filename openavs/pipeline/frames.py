"""The frames of a clip on their way to the models: in batches that fit into memory, decoded while the models work."""

from __future__ import annotations

from collections.abc import Iterator

from openavs.config.settings import PipelineConfig
from openavs.pipeline.context import RunContext
from openavs.pipeline.dedup import FrameDeduplicator
from openavs.structures.types import Clip, Frame
from openavs.utils.concurrency import batched, prefetch

BATCH_PIXELS = 1 << 25
"""Frames of a batch add up to at most this many pixels (eight 4K frames go one or two at a time)."""


def frame_batches(
    clip: Clip, wanted: frozenset[int], settings: PipelineConfig, notes: RunContext
) -> Iterator[list[Frame]]:
    """The wanted frames in their order; one whose picture repeats the one before has the very array of that one.

    A batch counts as done when the next one is asked for.
    """
    if not wanted:
        return
    pictures, done = FrameDeduplicator(settings.max_diff), 0
    frames = pictures.shared(clip.frames(wanted))
    batches = batched(frames, settings.batch_frames, lambda frame: frame.image.size // 3, BATCH_PIXELS)
    notes.progress("localize", 0, len(wanted))
    for batch in notes.timed_items("decode", prefetch(batches, depth=1)):
        yield batch
        done += len(batch)
        notes.progress("localize", done, len(wanted))
    if pictures.near:
        notes.warn(f"{pictures.near} of {done} frames had hardly changed and were taken for the one before them")
