"""The outcome of scoring predictions: figures in both protocols, with what they were made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from openavs.benchmarks.dataset import Task
from openavs.benchmarks.metrics import Figures, Protocol

Interval = tuple[float, float]


@dataclass(frozen=True)
class Scores:
    """Figures of one system on one split; shares and scores lie in [0, 1].

    `figures` and `intervals` (95 %, bootstrap over clips) hold both protocols; `protocol` is the one asked for.
    `per_class` and `per_clip` are rows of plain data (`name` or `id`, counts, `j`/`iou` and `f`); `curve` is the mean
    precision and recall at the 255 thresholds of binary predictions, None for label maps.
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
            "metrics": self.figures[self.protocol],
            "figures": self.figures,
            "intervals": {name: {k: list(v) for k, v in rows.items()} for name, rows in self.intervals.items()},
            "silence": self.silence,
            "per_class": list(self.per_class),
            "per_clip": list(self.per_clip),
            "curve": self.curve,
        }
