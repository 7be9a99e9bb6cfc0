"""What scoring keeps of every clip: enough for the figures, their intervals and the tables, under 2 kB a clip.

One tally per task. Each feeds the metrics, which give the exact figures, and keeps the clip's own sums, from which
the figures of any weighting of the clips follow: that is what the bootstrap and the rows of groups of clips use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, get_args

import numpy as np
import numpy.typing as npt

from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, Masks
from openavs.evaluation.datasets.classes import BASE, S4_CATEGORIES
from openavs.evaluation.metrics.aggregation import (
    Figures,
    binary_figures,
    open_vocabulary_figures,
    ratio,
    semantic_figures,
)
from openavs.evaluation.metrics.aggregation import Protocol as Rules
from openavs.evaluation.metrics.bootstrap import BootstrapSample
from openavs.evaluation.metrics.counting import (
    ClassAreas,
    Floats,
    clip_class_areas,
    clip_class_sums,
    clip_curves,
    thresholds,
)
from openavs.evaluation.metrics.metrics import BinaryMetrics, OpenVocabularyMetrics, SemanticMetrics

Row = dict[str, Any]


class MetricAccumulator(Protocol):
    """Adds up the clips of one task."""

    def add(self, clip: BenchmarkClip, predicted: Masks, truth: Masks, published: Masks | None = None) -> Row:
        """Count a clip, `[T, H, W]` all, and return its row: id, group, frames, score and f.

        `published` is the prediction as the published code samples it, where that is not `predicted`.
        """

    def figures(self, protocol: Rules) -> Figures:
        """The exact figures of all clips so far."""

    def sample(self, protocol: Rules) -> BootstrapSample:
        """The same figures of weighted clips (or batches), to float32 precision."""

    def per_class(self) -> list[Row]:
        """One row per class or category, by the `fixed` definitions; None where nothing holds the class."""

    def curve(self) -> dict[str, list[float]] | None:
        """Mean precision, recall and F at every threshold, over frames with non-empty truth; None for label maps."""


def make_accumulator(dataset: Dataset, clips_per_batch: int = 1) -> MetricAccumulator:
    """The tally of a data set's task; binary masks are tabled by S4's categories, else by what sounds in the clip."""
    if dataset.task == "binary":
        by_group = all(clip.group in S4_CATEGORIES or not clip.classes for clip in dataset.clips)
        return BinaryAccumulator(_by_group if by_group else _by_class, clips_per_batch)
    return (
        SemanticAccumulator(dataset.classes)
        if dataset.task == "semantic"
        else OpenVocabularyAccumulator(dataset.classes)
    )


def _by_class(clip: BenchmarkClip) -> Sequence[str]:
    return clip.classes


def _by_group(clip: BenchmarkClip) -> Sequence[str]:
    return (clip.group,) if clip.group else ()


class BinaryAccumulator:
    """J and F; `rows_of` names the rows of the per-class table that a clip counts in."""

    def __init__(self, rows_of: Callable[[BenchmarkClip], Sequence[str]], clips_per_batch: int = 1) -> None:
        self.metrics = BinaryMetrics(clips_per_batch)
        self._rows_of = rows_of
        self._names: list[Sequence[str]] = []
        self._sums: list[tuple[float, int, float, int]] = []
        self._curves = bytearray()  # float32 `[clips, 255]`: grows in place and is read without a copy
        self._precision_recall = np.zeros((2, len(thresholds())))

    def add(self, clip: BenchmarkClip, predicted: Masks, truth: Masks, published: Masks | None = None) -> Row:
        counted = clip_curves(predicted, truth)
        self.metrics.add(counted)
        j, frames = float(counted.j.sum()), len(counted.j)
        self._sums.append((j, frames, float(counted.j[counted.sounding].sum()), len(counted.curves)))
        self._curves += counted.curves[:, 0].sum(axis=0, dtype=np.float32).tobytes()
        self._precision_recall += counted.curves[:, 1:].sum(axis=0)
        self._names.append(self._rows_of(clip))
        return _row(clip, frames, j / frames, counted.f)

    def figures(self, protocol: Rules) -> Figures:
        return self.metrics.compute(protocol)

    def sample(self, protocol: Rules) -> BootstrapSample:
        if protocol == "official":
            batches = np.array(self.metrics.batches())

            def of_batches(weights: Floats) -> dict[str, Floats]:
                j, f = (weights @ batches / weights.sum(axis=1, keepdims=True)).T
                return {"miou": j, "f": f}

            return BootstrapSample(len(batches), of_batches)
        sums = np.array(self._sums)
        curves = np.frombuffer(self._curves, dtype=np.float32).reshape(len(sums), -1)

        def of_clips(weights: Floats) -> dict[str, Floats]:
            j, frames, j_sounding, sounding = (weights @ sums).T
            return binary_figures(j, frames, j_sounding, sounding, weights.astype(np.float32) @ curves)

        return BootstrapSample(len(sums), of_clips)

    def per_class(self) -> list[Row]:
        names = sorted({name for row in self._names for name in row})
        if not names:
            return []
        member = np.array([[float(name in row) for row in self._names] for name in names])
        figures = self.sample("fixed").figures(member)
        frames = member @ np.array(self._sums)[:, 1]
        return [
            {"name": name, "clips": int(member[i].sum()), "frames": int(frames[i])}
            | {"j": _plain(figures["miou"][i]), "f": _plain(figures["f"][i])}
            for i, name in enumerate(names)
        ]

    def curve(self) -> dict[str, list[float]] | None:
        if not self.metrics.sounding:
            return None
        precision, recall = self._precision_recall / self.metrics.sounding
        curves = {"threshold": thresholds(), "precision": precision, "recall": recall, "f": self.metrics.mean_f_curve()}
        return {name: values.tolist() for name, values in curves.items()}


class SemanticAccumulator:
    """AVSS's means over frames, by class."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.metrics = SemanticMetrics(len(classes))
        self._sums: list[npt.NDArray[np.float32]] = []  # `[4, classes]`: IoU, F, frames holding it, frames showing it
        self._padded: list[int] = []

    def add(self, clip: BenchmarkClip, predicted: Masks, truth: Masks, published: Masks | None = None) -> Row:
        counted = clip_class_sums(predicted, truth, len(self.classes))
        self.metrics.add(counted, len(truth))
        self._padded.append(max(0, self.metrics.pad_to - len(truth)))
        self._sums.append(np.array([counted.iou, counted.f, counted.held, counted.shown], dtype=np.float32))
        held = counted.held > 0
        score, f = (_mean(sums[held] / counted.held[held]) for sums in (counted.iou, counted.f))
        return _row(clip, len(truth), score, f)

    def figures(self, protocol: Rules) -> Figures:
        return self.metrics.compute(protocol)

    def sample(self, protocol: Rules) -> BootstrapSample:
        iou, f, held, shown = np.stack(self._sums, axis=1).astype(np.float64)
        padded = np.array(self._padded, dtype=np.float64)

        def of_clips(weights: Floats) -> dict[str, Floats]:
            sums = (weights @ iou, weights @ f, weights @ held, weights @ shown, weights @ padded)
            return semantic_figures(protocol, *sums)

        return BootstrapSample(len(padded), of_clips)

    def per_class(self) -> list[Row]:
        stack = np.array(self._sums)
        iou, f, held, shown = stack.sum(axis=0, dtype=np.float64)
        return [
            {"name": name, "clips": int(clips), "frames": int(shown[c])}
            | {"iou": _plain(ratio(iou[c], held[c])), "f": _plain(ratio(f[c], held[c]))}
            for c, (name, clips) in enumerate(zip(self.classes, _clips_showing(stack[:, 3]), strict=True))
        ]

    def curve(self) -> dict[str, list[float]] | None:
        return None


class OpenVocabularyAccumulator:
    """AVSBench-OV's pixels, by class; each protocol counts the prediction as it samples it."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.metrics = {rules: OpenVocabularyMetrics(classes=len(classes)) for rules in get_args(Rules)}
        # `[4, classes]` per clip: hit, predicted, true, frames showing it
        self._areas: dict[Rules, list[npt.NDArray[np.int32]]] = {rules: [] for rules in self.metrics}

    def add(self, clip: BenchmarkClip, predicted: Masks, truth: Masks, published: Masks | None = None) -> Row:
        counted = clip_class_areas(predicted, truth, len(self.classes))
        official = counted if published is None else clip_class_areas(published, truth, len(self.classes))
        by_rules: dict[Rules, ClassAreas] = {"fixed": counted, "official": official}
        for rules, areas in by_rules.items():
            self.metrics[rules].add(areas, len(truth))
            row = np.array([areas.hit, areas.predicted, areas.true, areas.shown], dtype=np.int32)
            self._areas[rules].append(row)
        union = counted.predicted + counted.true - counted.hit
        held = union > 0
        return _row(clip, len(truth), _mean(counted.hit[held] / union[held]), None)

    def figures(self, protocol: Rules) -> Figures:
        return self.metrics[protocol].compute(protocol)

    def sample(self, protocol: Rules) -> BootstrapSample:
        hit, predicted, true, _ = np.stack(self._areas[protocol], axis=1).astype(np.float64)
        metrics = self.metrics[protocol]

        def of_clips(weights: Floats) -> dict[str, Floats]:
            sums = (weights @ hit, weights @ predicted, weights @ true)
            return open_vocabulary_figures(protocol, *sums, base=metrics.base, novel=metrics.novel)

        return BootstrapSample(len(hit), of_clips)

    def per_class(self) -> list[Row]:
        stack = np.array(self._areas["fixed"])
        hit, predicted, true, shown = stack.sum(axis=0, dtype=np.int64)
        part = ["background" if c == 0 else "base" if c in BASE else "novel" for c in range(len(self.classes))]
        return [
            {"name": name, "part": part[c], "clips": int(clips), "frames": int(shown[c])}
            | {"iou": _plain(ratio(hit[c], predicted[c] + true[c] - hit[c])), "f": None}
            for c, (name, clips) in enumerate(zip(self.classes, _clips_showing(stack[:, 3]), strict=True))
        ]

    def curve(self) -> dict[str, list[float]] | None:
        return None


def _row(clip: BenchmarkClip, frames: int, score: float, f: float | None) -> Row:
    return {"id": clip.id, "group": clip.group, "frames": frames, "score": score, "f": f}


def _mean(values: Floats) -> float:
    """The mean over a clip's classes; 1 where every pixel is ignored."""
    return float(values.mean()) if values.size else 1.0


def _clips_showing(shown: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """In how many clips each class is in the truth, of `[clips, classes]` frames."""
    return np.asarray(np.count_nonzero(shown, axis=0))


def _plain(value: Floats) -> float | None:
    return None if np.isnan(value) else float(value)
