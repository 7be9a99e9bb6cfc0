"""Metrics of benchmarks with several of a kind in view: is the one marked that sounds?

They need masks alone, so they hold for any system. An instance counts as marked in a frame if more than half of its
visible pixels are. Counted are the frames that show a sounding and a silent one of the kind:

- `decided`: share of these frames in which at least one, but not all, of the twins are marked.
- `right`: share of the decided frames in which the marked twins are those that sound.
- `silent_area`: share of the silent twins' pixels that is marked.

Of other frames are `miou`, the mean IoU over all frames with a visible sounding instance, and `offscreen_marked`, the
share of the clips with a source outside the picture in which something is marked at any frame that sounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.evaluation.datasets.base import Instances, Masks
from openavs.evaluation.metrics.bootstrap import BootstrapSample, Interval, intervals
from openavs.evaluation.metrics.functional import Figures, Floats, frame_j, ratio, to_figures
from openavs.evaluation.metrics.metrics import Row
from openavs.structures.types import BoolMask

# Sums of a clip: frames counted, decided, right; silent twins' pixels, of these marked; frames with a visible sounding
# instance, their IoU; 1 for a source outside the picture, 1 if something was marked then.
_SUMS = 9


class TwinsMetrics:
    """Accumulates clips with several of a kind.

    Example:
        >>> maps = np.array([[[1, 1, 2, 2]]], dtype=np.uint8)
        >>> one_sounds = Instances(maps, np.array([True, True]), np.array([[True, False]]))
        >>> metric = TwinsMetrics()
        >>> metric.update(np.array([[[255, 255, 255, 0]]], dtype=np.uint8), one_sounds)
        >>> figures = metric.compute()
        >>> figures["decided"], figures["right"], figures["silent_area"]
        (1.0, 1.0, 0.5)
    """

    def __init__(self) -> None:
        self._sums: list[npt.NDArray[np.float64]] = []
        self._groups: list[str | None] = []

    def update(self, predicted: Masks, instances: Instances, group: str | None = None) -> None:
        """Add one clip.

        Args:
            predicted: uint8 probabilities times 255 `[T, H, W]`.
            instances: the instances of the same frames.
            group: the row of `groups` that the clip counts in.

        Raises:
            InputError: shapes that differ.
        """
        if predicted.shape != instances.maps.shape:
            raise InputError(f"masks of {list(predicted.shape)} do not fit instances of {list(instances.maps.shape)}")
        visible = _areas(instances.maps, len(instances.twins)) > 0
        frames = zip(predicted, instances.maps, instances.sounding, strict=True)
        sums = np.sum([_frame_sums(p > 127, m, instances.twins, on) for p, m, on in frames], axis=0)
        elsewhere = instances.sounding & ~visible
        if elsewhere.any():
            marked = (predicted[elsewhere.any(axis=1)] > 127).any()
            sums[7:] = 1, marked
        self._sums.append(sums)
        self._groups.append(group)

    def compute(self) -> Figures:
        """Return the figures of all clips, shares in [0, 1], None where nothing is counted.

        Raises:
            InputError: no clip was added.
        """
        if not self._sums:
            raise InputError("there is no clip to score")
        return to_figures(_figures(np.sum(self._sums, axis=0)))

    def sample(self) -> BootstrapSample:
        """Return the figures of weighted clips."""
        return _sample(self._sums)

    def groups(self) -> list[Row]:
        """Return one row per group: name, clips, the counted frames, figures and their intervals."""
        rows = []
        for name in sorted({group for group in self._groups if group is not None}):
            sums = [own for own, group in zip(self._sums, self._groups, strict=True) if group == name]
            total = np.sum(sums, axis=0)
            bounds: dict[str, Interval] = intervals(_sample(sums))
            row: Row = {
                "name": name,
                "clips": len(sums),
                "frames": int(total[0]),
                "figures": to_figures(_figures(total)),
            }
            rows.append(row | {"intervals": {figure: list(bound) for figure, bound in bounds.items()}})
        return rows


def _frame_sums(marked: BoolMask, owners: npt.NDArray[np.uint8], twins: BoolMask, on: BoolMask) -> list[float]:
    """Return the sums of one frame, in the order of `_SUMS`."""
    area, hit = _areas(owners, len(twins)), _areas(np.where(marked, owners, 0), len(twins))
    shown = area > 0
    sums = [0.0] * _SUMS
    if (shown & on).any():
        truth = np.isin(owners, np.flatnonzero(on) + 1)
        sums[5:7] = 1.0, frame_j(marked, truth)
    seen = shown & twins
    sounding, silent = seen & on, seen & ~on
    if sounding.any() and silent.any():
        chosen = seen & (2 * hit > area)
        decided = chosen.any() and not chosen[seen].all()
        right = decided and np.array_equal(chosen, sounding)
        sums[:5] = map(float, (1, decided, right, area[silent].sum(), hit[silent].sum()))
    return sums


def _areas(owners: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.intp]:
    """Return the number of pixels of each of `count` instances."""
    return np.bincount(owners.ravel(), minlength=count + 1)[1:]


def _sample(sums: Sequence[npt.NDArray[np.float64]]) -> BootstrapSample:
    stacked = np.array(sums)
    return BootstrapSample(len(stacked), lambda weights: _figures(weights @ stacked))


def _figures(sums: Floats) -> dict[str, Floats]:
    """Return the figures of sums `[..., 9]`."""
    frames, decided, right, silent, marked, sounding, iou, offscreen, wrong = np.moveaxis(sums, -1, 0)
    return {
        "miou": ratio(iou, sounding),
        "decided": ratio(decided, frames),
        "right": ratio(right, decided),
        "silent_area": ratio(marked, silent),
        "offscreen_marked": ratio(wrong, offscreen),
    }
