"""Runs: consecutive frames with the same captions, which a language model is asked about once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from openavs.structures.types import Caption


@dataclass(frozen=True)
class CaptionRun:
    """The frames from `start` up to, but not including, `stop`, and the captions that stand for all of them."""

    start: int
    stop: int
    captions: tuple[Caption, ...]


def merge_runs(frames: Sequence[tuple[Caption, ...]]) -> list[CaptionRun]:
    """The runs of a clip, in order of time; a frame without captions belongs to none.

    Captions are the same if their texts and questions are, in the same order. A run has the mean of their scores.
    """
    runs, start = [], 0
    for said, group in groupby(frames, key=lambda own: [(caption.text, caption.question) for caption in own]):
        same = list(group)
        if said:
            runs.append(CaptionRun(start, start + len(same), tuple(map(_merged, zip(*same, strict=True)))))
        start += len(same)
    return runs


def single_frames(frames: Sequence[tuple[Caption, ...]]) -> list[CaptionRun]:
    """One run for every frame, those without captions included."""
    return [CaptionRun(i, i + 1, captions) for i, captions in enumerate(frames)]


def _merged(same: Sequence[Caption]) -> Caption:
    """One caption for those of the same text, from the start of the first to the end of the last."""
    scores = [caption.score for caption in same if caption.score is not None]
    return replace(same[0], score=sum(scores) / len(scores) if scores else None, end=same[-1].end)
