"""Protocols of verifiers, of looks and of whole clips, and the calibration of their thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import getattr_static
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np

from openavs.errors import InputError
from openavs.structures.types import (
    ClipEvidence,
    ImageArray,
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
