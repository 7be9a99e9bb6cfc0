"""Calibration of a verifier's threshold on segments that are known to be right or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openavs.errors import InputError


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
