"""The outcome of scoring predictions: figures in both protocols, with what they were made from."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openavs.evaluation.datasets.base import Task
from openavs.evaluation.metrics.aggregation import Figures, Protocol
from openavs.evaluation.metrics.bootstrap import Interval
from openavs.results.serialization import json_bytes
from openavs.utils.fs import atomic_write


@dataclass(frozen=True)
class BenchmarkScores:
    """Figures of one system on one split; shares and scores lie in [0, 1].

    `figures` and `intervals` (95 %, bootstrap over clips; over batches for the `official` binary ones) hold both
    protocols; `protocol` is the chosen one. `silence` holds the output of `SilenceAccumulator.compute`. `per_class`
    rows (`name`, `clips` and `frames` whose truth holds it, `j` or `iou`, `f`) follow the `fixed` definitions, so they
    depend neither on batches nor on padding. `per_clip` rows hold `id`, `group`, `frames`, `score` (mean J, or mean IoU
    of the classes that the clip's truth or prediction holds) and `f`. `curve` is the mean `precision`, `recall` and `f`
    at the 255 values of `threshold` of binary predictions, None for label maps. `missing` are the clips that lacked
    predictions, `missing_masks` of them in all, which count as empty.
    """

    benchmark: str
    task: Task
    split: str
    protocol: Protocol
    clips_per_batch: int
    clips: int
    frames: int
    figures: dict[Protocol, Figures]
    intervals: dict[Protocol, dict[str, Interval]] = field(default_factory=dict)
    silence: Figures = field(default_factory=dict)
    per_class: tuple[dict[str, Any], ...] = ()
    per_clip: tuple[dict[str, Any], ...] = ()
    curve: dict[str, list[float]] | None = None
    missing: tuple[str, ...] = ()
    missing_masks: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `metrics` are the figures of the protocol that was asked for."""
        return {
            "benchmark": self.benchmark,
            "task": self.task,
            "split": self.split,
            "protocol": self.protocol,
            "clips_per_batch": self.clips_per_batch,
            "clips": self.clips,
            "frames": self.frames,
            "missing": len(self.missing),
            "missing_masks": self.missing_masks,
            "metrics": self.figures[self.protocol],
            "figures": self.figures,
            "intervals": {name: {k: list(v) for k, v in rows.items()} for name, rows in self.intervals.items()},
            "silence": self.silence,
            "per_class": list(self.per_class),
            "per_clip": list(self.per_clip),
            "curve": self.curve,
        }


def write_scores(out: Path, report: dict[str, Any]) -> None:
    """Writes `report.json` (`Scores.to_dict()` and what else the caller knows) and `per_clip.csv` to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ("id", "group", "frames", "score", "f"))
    writer.writeheader()
    writer.writerows(report["per_clip"])
    atomic_write(out / "per_clip.csv", table.getvalue().encode())
    atomic_write(out / "report.json", json_bytes(report))
