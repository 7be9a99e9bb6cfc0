"""Metrics of AVATAR: CIoU and AUC of what sounds on the screen, and the true negative rate of what sounds off it.

- CIoU is the mean IoU over frames with an object on the screen. AUC is the area under the share of these frames that
  reach each of 21 IoUs (0, 0.05, ..., 1), by the trapezoidal rule.
- `tn` is the share of pixels left unmarked, pooled over frames with a sound from off the screen. Pixels of objects on
  the screen are not counted. `left_empty` is the share of these frames without such a marked pixel.

`official` marks a pixel from 0.1 on, as the published code does for heat maps; `fixed` above 0.5. Hard masks have the
same figures in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from openavs.evaluation.datasets.base import BenchmarkClip, Masks
from openavs.evaluation.metrics.bootstrap import BootstrapSample, intervals
from openavs.evaluation.metrics.functional import Figures, Floats, Protocol, check_protocol, ratio, to_figures
from openavs.evaluation.metrics.metrics import NO_FACTS, ClipFacts, ClipScore, Metric, Row
from openavs.structures.types import BoolMask

TASKS = ("Single-Sound", "Mixed-Sound", "Multi-Entity")
OFF_SCREEN = "Off-Screen"
IOUS = np.array([0.05 * i for i in range(21)])
LOWEST = {"official": 26, "fixed": 128}  # of 255
_PARTS = ("Total", *TASKS)
# Sums of a clip: frames, IoU and AUC of each part; frames off the screen, unmarked and counted pixels, empty frames.
_SUMS = 3 * len(_PARTS) + 4


class LocalizationMetrics(Metric):
    """CIoU, AUC and the true negative rate; `read_tasks` reads the tasks of each annotated frame of a clip."""

    def __init__(self, read_tasks: Callable[[BenchmarkClip], Sequence[frozenset[str]]]) -> None:
        self._read = read_tasks
        super().__init__()

    def reset(self) -> None:
        """Reset the state to no clips."""
        super().reset()
        self._sums: dict[str, list[Floats]] = {protocol: [] for protocol in LOWEST}

    def update(self, predicted: Masks, truth: Masks, facts: ClipFacts = NO_FACTS) -> ClipScore:
        """Add one clip; see `Metric.update`. The clip is needed for its tasks."""
        assert facts.clip is not None
        tasks = self._read(facts.clip)
        self.frames += len(truth)
        for protocol, lowest in LOWEST.items():
            frames = zip(predicted >= lowest, truth, tasks, strict=True)
            self._sums[protocol].append(np.sum([_frame_sums(*frame) for frame in frames], axis=0))
        own = self._sums["fixed"][-1]
        return ClipScore(float(own[1] / own[0] if own[0] else own[-3] / own[-2] if own[-4] else 1.0), None)

    def compute(self, protocol: Protocol) -> Figures:
        """Return `ciou`, `auc`, `tn` and `left_empty`; None without frames of the kind."""
        check_protocol(protocol, self.frames)
        return to_figures(_figures(np.sum(self._sums[protocol], axis=0), 0))

    def sample(self, protocol: Protocol) -> BootstrapSample:
        """Return the figures of weighted clips."""
        return self._sample(protocol, 0)

    def per_class(self) -> list[Row]:
        """Return no rows: the tasks are `groups`."""
        return []

    def groups(self) -> list[Row]:
        """Return one row per task with `ciou` and `auc`, by `official`."""
        stacked = np.array(self._sums["official"])
        rows: list[Row] = []
        for part, name in enumerate(_PARTS[1:], start=1):
            held = stacked[:, 3 * part]
            kept = {"ciou", "auc"}
            figures = to_figures(_figures(stacked.sum(axis=0), part))
            bounds = intervals(self._sample("official", part))
            row: Row = {"name": name, "clips": int(np.count_nonzero(held)), "frames": int(held.sum())}
            row["figures"] = {key: value for key, value in figures.items() if key in kept}
            rows.append(row | {"intervals": {key: list(bound) for key, bound in bounds.items() if key in kept}})
        return [row for row in rows if row["frames"]]

    def _sample(self, protocol: Protocol, part: int) -> BootstrapSample:
        stacked = np.array(self._sums[protocol])
        return BootstrapSample(len(stacked), lambda weights: _figures(weights @ stacked, part))


def _frame_sums(marked: BoolMask, truth: BoolMask, tasks: frozenset[str]) -> Floats:
    sums = np.zeros(_SUMS)
    visible = tasks - {OFF_SCREEN}
    if visible:
        union = int(np.count_nonzero(marked | truth))
        iou = np.count_nonzero(marked & truth) / union if union else 0.0
        reached = (iou >= IOUS).astype(np.float64)
        auc = float(np.sum((reached[1:] + reached[:-1]) / 2 * np.diff(IOUS)))
        for part, name in enumerate(_PARTS):
            if part == 0 or name in visible:
                sums[3 * part : 3 * part + 3] = 1.0, iou, auc
    if OFF_SCREEN in tasks:
        wrong, counted = int(np.count_nonzero(marked & ~truth)), int(np.count_nonzero(~truth))
        sums[-4:] = 1.0, counted - wrong, counted, wrong == 0
    return sums


def _figures(sums: Floats, part: int) -> dict[str, Floats]:
    """Return the figures of sums `[..., 16]`."""
    frames, iou, auc = (sums[..., 3 * part + i] for i in range(3))
    off, unmarked, counted, empty = (sums[..., i] for i in (-4, -3, -2, -1))
    return {
        "ciou": ratio(iou, frames),
        "auc": ratio(auc, frames),
        "tn": ratio(unmarked, counted),
        "left_empty": ratio(empty, off),
    }
