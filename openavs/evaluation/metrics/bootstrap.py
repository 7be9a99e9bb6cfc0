"""95 % intervals by the bootstrap over clips, from per-clip sums; no prediction is read or scored again.

A resample is a row of weights: the number of times that each clip was drawn. A figure made of sums over clips is then a
matrix product, for a thousand resamples at once. The interval is the percentile interval (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13).

A resample can lack classes that few clips hold. A figure that divides by all classes (AVSS in `official`) then tends to
be lower in resamples, and its interval is low on small splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from openavs.evaluation.metrics.functional import Floats

Interval = tuple[float, float]

RESAMPLES = 1000
_BLOCK = 1 << 18  # maximum number of weights in memory


@dataclass(frozen=True)
class BootstrapSample:
    """The number of units (clips or batches) to draw, and the figures of weighted units.

    `figures(weights)` takes `[R, units]` and returns each figure's values `[R]`, NaN if undefined.
    """

    units: int
    figures: Callable[[Floats], dict[str, Floats]]


def intervals(sample: BootstrapSample, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Interval]:
    """Return the 95 % percentile interval of every figure; equal seeds give equal intervals.

    Resamples in which a figure is undefined (such as without any novel class) are left out of its interval. A figure
    that is never defined has no interval.
    """
    parts = [sample.figures(weights) for weights in _draws(sample.units, resamples, np.random.default_rng(seed))]
    found: dict[str, Interval] = {}
    for name in parts[0] if parts else ():
        values = np.concatenate([part[name] for part in parts])
        if (defined := values[~np.isnan(values)]).size:
            low, high = np.quantile(defined, (0.025, 0.975))
            found[name] = float(low), float(high)
    return found


def _draws(units: int, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Weights `[R, units]` of draws with replacement, in blocks that fit in memory for any number of units."""
    size = max(1, _BLOCK // max(units, 1))
    for start in range(0, resamples if units else 0, size):
        rows = min(size, resamples - start)
        picks = rng.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(picks.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)
