"""Where to put a verifier's threshold, given segments of which one knows whether they are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openavs.errors import InputError


@dataclass(frozen=True)
class Calibration:
    """A threshold, and the shares of right segments that it keeps and of wrong ones that it drops."""

    threshold: float
    right_kept: float
    wrong_dropped: float


def calibrate(scores: Sequence[float], right: Sequence[bool], keep: float = 0.95) -> Calibration:
    """The highest threshold that keeps at least the share `keep` of the right segments.

    Raising it further would drop more of what is right than one is ready to lose; lowering it would only let more of
    what is wrong through. Raises InputError without right or without wrong examples, or for a `keep` outside (0, 1].
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.bool_)
    if values.shape != truth.shape or not truth.any() or truth.all():
        raise InputError("calibration needs a score for each example, and right and wrong examples; give both")
    if not 0 < keep <= 1:
        raise InputError(
            f"calibration keeps a share of the right examples that is more than 0 and at most 1, not {keep}"
        )
    good = np.sort(values[truth])[::-1]
    threshold = float(good[int(np.ceil(keep * len(good) - 1e-9)) - 1])
    kept = values >= threshold
    return Calibration(threshold, float(kept[truth].mean()), float((~kept)[~truth].mean()))
