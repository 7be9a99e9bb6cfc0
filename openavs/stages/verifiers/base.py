"""Protocols of verifiers, of looks and of whole clips, and the calibration of their thresholds.

Verifiers of whole clips make a `Choice` about each segment and apply them to its frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import getattr_static
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np

from openavs.errors import InputError
from openavs.structures.types import (
    ClipEvidence,
    Decision,
    ImageArray,
    Rejection,
    Segment,
    TrackedFrame,
    Verdict,
)


@runtime_checkable
class Verifier(Protocol):
    """Verifies each segment by itself. A verdict depends on the image, the segment and the phrases of the image."""

    def verify(
        self, images: Sequence[ImageArray], segments: Sequence[Sequence[Segment]], phrases: Sequence[Sequence[str]]
    ) -> list[list[Verdict]]:
        """Return one list of verdicts per image, one per segment. `phrases` are all that sound at each image."""
        ...


@runtime_checkable
class TemporalVerifier(Protocol):
    """Verifies the segments of a clip together: the candidates of a phrase are compared over time."""

    def verify_clip(self, frames: Iterable[TrackedFrame], evidence: ClipEvidence) -> Iterator[TrackedFrame]:
        """Yield the same frames in the same order, with a verdict on every segment.

        A rejected segment becomes a `Rejection` of its frame. `frames` are consumed lazily, at most a bounded number
        ahead of the output. Segments of one track are the same object; without a tracker, `track` is None.
        """
        ...


def is_temporal(verifier: Any) -> TypeGuard[TemporalVerifier]:
    """Return whether a verifier has `verify_clip`, without reading it, which would load a lazy backend's model."""
    return callable(getattr_static(verifier, "verify_clip", None))


# ------------------------------------------------------------------------------------------------- choices


@dataclass(frozen=True)
class Choice:
    """The decision about one candidate of a phrase.

    Attributes:
        decision: `kept`, `rejected` or `unresolved`.
        score: how well it fits the sound, in [0, 1].
        margin: see `Verdict`.
        reason: reason of the rejection: `silent` or `off-screen`; None unless rejected.
    """

    decision: Decision
    score: float
    margin: float | None = None
    reason: str | None = None


def apply_choices(tracked: TrackedFrame, choices: Sequence[Choice], verifier: str) -> TrackedFrame:
    """Return a frame with a verdict on every segment; rejected segments become rejections, the best one first.

    Args:
        tracked: the frame.
        choices: one for each segment.
        verifier: name of the verifier.
    """
    segments: list[Segment] = []
    rejected: list[Rejection] = []
    for segment, choice in zip(tracked.segments, choices, strict=True):
        if choice.reason is not None:
            rejected.append(
                Rejection(segment.phrase, choice.reason, choice.score, segment.box, choice.margin, verifier)
            )
            continue
        verdict = Verdict(choice.decision, choice.score, choice.margin, None, verifier)
        segments.append(replace(segment, verdicts=(*segment.verdicts, verdict)))
    rejected.sort(key=lambda rejection: -(rejection.score or 0.0))
    return replace(tracked, segments=tuple(segments), rejected=(*tracked.rejected, *rejected))


@dataclass(frozen=True)
class Calibration:
    """A threshold, with the fractions of right segments that it keeps and of wrong ones that it rejects."""

    threshold: float
    right_kept: float
    wrong_rejected: float


def calibrate(scores: Sequence[float], right: Sequence[bool], keep: float = 0.95) -> Calibration:
    """Find the highest threshold that keeps at least a given fraction of the right segments.

    Args:
        scores: a verifier's score of each segment.
        right: whether each segment is right.
        keep: minimum fraction of right segments to keep, in (0, 1].

    Raises:
        InputError: right or wrong examples are missing, or `keep` is out of range.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.bool_)
    if values.shape != truth.shape or not truth.any() or truth.all():
        raise InputError("calibration needs a score for each example, and both right and wrong examples")
    if not 0 < keep <= 1:
        raise InputError(f"calibration keeps a fraction of right examples more than 0 and at most 1, not {keep}")
    good = np.sort(values[truth])[::-1]
    threshold = float(good[int(np.ceil(keep * len(good) - 1e-9)) - 1])
    kept = values >= threshold
    return Calibration(threshold, float(kept[truth].mean()), float((~kept)[~truth].mean()))
