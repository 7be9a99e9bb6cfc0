"""Metrics of AVSBench in the form of torchmetrics: `update` per clip, `compute` for figures, `reset`.

Every figure has two protocols. `official` equals the published evaluation with its flaws; `fixed` has the same
per-frame definitions (`functional.py`) and corrects the rest:

- J: official is the mean over batches of the batch mean, fixed the mean over frames.
- F: official takes the best of 255 thresholds per batch, then the mean over batches; a batch with empty truth counts 0.
  Fixed averages the curves of all frames with non-empty truth, then takes the best threshold.
- AVSS: official divides by all 71 classes, so absent classes count 0, and counts the frames that the loader pads clips
  with as background. Fixed leaves out padded frames and the classes that no truth holds.
- OV: official leaves out classes that neither truth nor prediction holds, has a harmonic mean of 0 without any base or
  novel class, and samples predictions as the published code does. Fixed leaves out classes that no truth holds and
  samples predictions like the truth (readers do the sampling).

A `fixed` figure therefore depends neither on the order of the clips nor on the batches, and averages the same classes
for every system. In both protocols J of an empty truth is the share of pixels that are not predicted.

Each metric keeps totals, which give the exact figures, and the sums of each clip (under 2 kB). Figures of any weighting
of the clips follow from these sums: for the bootstrap and for tables of groups of clips.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Masks, Task
from openavs.evaluation.datasets.tables import BASE, CLASSES, NOVEL
from openavs.evaluation.metrics.bootstrap import BootstrapSample
from openavs.evaluation.metrics.functional import (
    THRESHOLD_COUNT,
    Figures,
    Floats,
    Protocol,
    Sums,
    binary_figures,
    check_protocol,
    clip_class_areas,
    clip_class_sums,
    clip_curves,
    open_vocabulary_figures,
    ratio,
    semantic_figures,
    thresholds,
    to_figures,
    to_number,
)

Row = dict[str, Any]


class ClipScore(NamedTuple):
    """Scores of one clip: mean J or mean IoU of the classes it holds, and F; None if undefined."""

    score: float
    f: float | None


class ClipFacts(NamedTuple):
    """Facts of a clip for metrics that depend on more than its masks.

    Attributes:
        published: the prediction as the published code samples it, if that differs.
        names: rows of the per-class table that the clip counts in; label maps have their classes instead.
        clip: the clip.
    """

    published: Masks | None = None
    names: Sequence[str] = ()
    clip: BenchmarkClip | None = None


NO_FACTS = ClipFacts()


class Metric(ABC):
    """Accumulates the clips of one task."""

    def __init__(self) -> None:
        self.reset()

    @abstractmethod
    def reset(self) -> None:
        """Reset the state to no clips."""
        self.frames = 0

    @abstractmethod
    def update(self, predicted: Masks, truth: Masks, facts: ClipFacts = NO_FACTS) -> ClipScore:
        """Add one clip and return its own scores.

        Args:
            predicted: `[T, H, W]`, annotated frames only: probabilities (see `frame_j`) or label maps.
            truth: `[T, H, W]`, bool or label maps.
            facts: for metrics that depend on more than the masks.
        """

    @abstractmethod
    def compute(self, protocol: Protocol) -> Figures:
        """Return the exact figures of all clips, shares in [0, 1].

        Raises:
            InputError: an unknown protocol, or no clip was added.
        """

    @abstractmethod
    def sample(self, protocol: Protocol) -> BootstrapSample:
        """Return the figures as functions of the clips' (or batches') weights, to float32 precision."""

    @abstractmethod
    def per_class(self) -> list[Row]:
        """Return one row per class or name, by the `fixed` definitions, with None for absent classes."""

    def groups(self) -> list[Row]:
        """Return one row per group of clips: name, clips, frames, figures and intervals; most metrics have none."""
        return []

    def curve(self) -> dict[str, list[float]] | None:
        """Return mean precision, recall and F at every `threshold`, over frames with non-empty truth.

        None for label maps, and without such frames.
        """
        return None


def make_metric(task: Task, classes: Sequence[str] = (), clips_per_batch: int = 1) -> Metric:
    """Create the metric of a task; `classes` are the class names of label maps."""
    if task == "binary":
        return BinaryMetrics(clips_per_batch)
    return SemanticMetrics(classes) if task == "semantic" else OpenVocabularyMetrics(classes)


class BinaryMetrics(Metric):
    """J and F of binary masks, for S4, MS3 and V3.

    `miou` is J, `miou_sounding` J over frames with non-empty truth. `clips_per_batch` is the batch of `official` (1 in
    the published script), `threshold` the probability above which J counts a pixel. F of `official` falls as batches
    grow, because it is a mean of maxima, so the batch belongs beside the figure.

    Example:
        >>> truth = np.array([[[True, True], [False, False]]])
        >>> metric = BinaryMetrics()
        >>> metric.update(np.array([[[255, 0], [0, 0]]], dtype=np.uint8), truth).score
        0.5
        >>> metric.update(truth, truth).score
        1.0
        >>> metric.compute("official")["miou"]
        0.75
    """

    def __init__(self, clips_per_batch: int = 1, threshold: float = 0.5) -> None:
        if clips_per_batch < 1:
            raise InputError(f"a batch holds at least one clip, not {clips_per_batch}")
        self.clips_per_batch, self.threshold = clips_per_batch, threshold
        super().__init__()

    def reset(self) -> None:
        """Reset the state to no clips."""
        super().reset()
        self.sounding = 0
        self._j = self._j_sounding = 0.0
        self._curve = np.zeros(THRESHOLD_COUNT)
        self._precision_recall = np.zeros((2, THRESHOLD_COUNT))
        self._batches: list[tuple[float, float]] = []
        self._start_batch()
        # State per clip: J sum, frames, J sum of sounding frames, sounding frames; names; float32 F curve sum. The
        # curves are bytes, because a bytearray grows in place and numpy reads it without a copy.
        self._clip_sums: list[tuple[float, int, float, int]] = []
        self._clip_names: list[Sequence[str]] = []
        self._clip_curves = bytearray()

    def update(self, predicted: Masks, truth: Masks, facts: ClipFacts = NO_FACTS) -> ClipScore:
        """Add one clip; see `Metric.update`."""
        found = clip_curves(predicted, truth, self.threshold)
        j, j_sounding = float(found.j.sum()), float(found.j[found.sounding].sum())
        frames, sounding = len(found.j), len(found.curves)
        for curve in found.curves[:, 0]:
            self._batch_curve += curve  # float32, one frame after the other, as published
            self._curve += curve
        self._precision_recall += found.curves[:, 1:].sum(axis=0)
        self.frames += frames
        self.sounding += sounding
        self._j += j
        self._j_sounding += j_sounding
        self._batch_clips += 1
        self._batch_frames += frames
        self._batch_sounding += sounding
        self._batch_j += j
        if self._batch_clips == self.clips_per_batch:
            self._batches.append(self._batch_scores())
            self._start_batch()
        self._clip_sums.append((j, frames, j_sounding, sounding))
        self._clip_names.append(facts.names)
        self._clip_curves += found.curves[:, 0].sum(axis=0, dtype=np.float32).tobytes()
        return ClipScore(j / frames, found.f)

    def compute(self, protocol: Protocol) -> Figures:
        """Return `miou` and `f`; in `fixed` also `miou_sounding`."""
        check_protocol(protocol, self.frames)
        if protocol == "official":
            j, f = np.mean(self._all_batches(), axis=0)  # a smaller last batch counts as much as the others
            return {"miou": float(j), "f": float(f)}
        j, frames, j_sounding, sounding = np.array([self._j, self.frames, self._j_sounding, self.sounding])
        return to_figures(binary_figures(j, frames, j_sounding, sounding, self._curve))

    def sample(self, protocol: Protocol) -> BootstrapSample:
        """Return the figures of weighted clips (`fixed`) or batches (`official`)."""
        if protocol == "official":
            batches = np.array(self._all_batches())

            def official(weights: Floats) -> dict[str, Floats]:
                j, f = (weights @ batches / weights.sum(axis=1, keepdims=True)).T
                return {"miou": j, "f": f}

            return BootstrapSample(len(batches), official)
        sums = np.array(self._clip_sums)
        curves = np.frombuffer(self._clip_curves, dtype=np.float32).reshape(len(sums), -1)

        def fixed(weights: Floats) -> dict[str, Floats]:
            j, frames, j_sounding, sounding = (weights @ sums).T
            return binary_figures(j, frames, j_sounding, sounding, weights.astype(np.float32) @ curves)

        return BootstrapSample(len(sums), fixed)

    def per_class(self) -> list[Row]:
        """Return one row per name: clips, frames, `j` and `f`."""
        names = sorted({name for row in self._clip_names for name in row})
        if not names:
            return []
        member = np.array([[float(name in row) for row in self._clip_names] for name in names])
        figures = self.sample("fixed").figures(member)
        frames = member @ np.array(self._clip_sums)[:, 1]
        return [
            {"name": name, "clips": int(member[i].sum()), "frames": int(frames[i])}
            | {"j": to_number(figures["miou"][i]), "f": to_number(figures["f"][i])}
            for i, name in enumerate(names)
        ]

    def curve(self) -> dict[str, list[float]] | None:
        """Return the mean curves over frames with non-empty truth; see `Metric.curve`."""
        if not self.sounding:
            return None
        precision, recall = self._precision_recall / self.sounding
        curves = {"threshold": thresholds(), "precision": precision, "recall": recall, "f": self._curve / self.sounding}
        return {name: values.tolist() for name, values in curves.items()}

    def _start_batch(self) -> None:
        self._batch_clips = self._batch_frames = self._batch_sounding = 0
        self._batch_j = 0.0
        self._batch_curve = np.zeros(THRESHOLD_COUNT, dtype=np.float32)

    def _batch_scores(self) -> tuple[float, float]:
        best = float((self._batch_curve / np.float32(self._batch_sounding)).max()) if self._batch_sounding else 0.0
        return self._batch_j / self._batch_frames, best

    def _all_batches(self) -> list[tuple[float, float]]:
        """J and F of every batch, including a smaller last one."""
        return [*self._batches, self._batch_scores()] if self._batch_clips else self._batches


class SemanticMetrics(Metric):
    """AVSS: per-class means of per-frame IoU and F, over the frames that hold the class in truth or prediction.

    `miou`, `f` and their `_foreground` means; `official` adds the published `miou_nobg` and `f_nobg`. `pad_to` is the
    number of frames to which the published loader fills up every clip with empty ones.
    """

    def __init__(self, classes: Sequence[str] = CLASSES, pad_to: int = 10) -> None:
        self.classes, self.pad_to = classes, pad_to
        super().__init__()

    def reset(self) -> None:
        """Reset the state to no clips."""
        super().reset()
        count = len(self.classes)
        self._iou, self._f = np.zeros(count), np.zeros(count)
        self._held, self._shown = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self._padded: list[int] = []  # per clip
        self._clip_sums: list[npt.NDArray[np.float32]] = []  # `[4, classes]`: IoU, F, held, shown

    def update(self, predicted: Masks, truth: Masks, facts: ClipFacts = NO_FACTS) -> ClipScore:
        """Add one clip of label maps, without padded frames; see `Metric.update`."""
        found = clip_class_sums(predicted, truth, len(self.classes))
        self._iou += found.iou
        self._f += found.f
        self._held += found.held
        self._shown += found.shown
        self.frames += len(truth)
        self._padded.append(max(0, self.pad_to - len(truth)))
        self._clip_sums.append(np.array([found.iou, found.f, found.held, found.shown], dtype=np.float32))
        held = found.held > 0
        return ClipScore(*(_clip_mean(sums[held] / found.held[held]) for sums in (found.iou, found.f)))

    def compute(self, protocol: Protocol) -> Figures:
        """Return `miou`, `f` and their means without background."""
        check_protocol(protocol, self.frames)
        return to_figures(semantic_figures(protocol, *self._sums()))

    def sample(self, protocol: Protocol) -> BootstrapSample:
        """Return the figures of weighted clips."""
        iou, f, held, shown = np.stack(self._clip_sums, axis=1).astype(np.float64)
        padded = np.array(self._padded, dtype=np.float64)

        def figures(weights: Floats) -> dict[str, Floats]:
            sums = (weights @ iou, weights @ f, weights @ held, weights @ shown, weights @ padded)
            return semantic_figures(protocol, *sums)

        return BootstrapSample(len(padded), figures)

    def per_class(self) -> list[Row]:
        """Return one row per class: clips and frames that show it, `iou` and `f`."""
        stack = np.array(self._clip_sums)
        iou, f, held, shown = stack.sum(axis=0, dtype=np.float64)
        clips = np.count_nonzero(stack[:, 3], axis=0)
        return [
            {"name": name, "clips": int(clips[c]), "frames": int(shown[c])}
            | {"iou": to_number(ratio(iou[c], held[c])), "f": to_number(ratio(f[c], held[c]))}
            for c, name in enumerate(self.classes)
        ]

    def _sums(self) -> tuple[Sums, Sums, Sums, Sums, Sums]:
        return self._iou, self._f, self._held, self._shown, np.asarray(sum(self._padded))


class OpenVocabularyMetrics(Metric):
    """AVSBench-OV: IoU of pixels counted over all frames together, averaged over base and novel classes.

    `miou` (background included), `base`, `novel` and their `harmonic` mean. Each protocol counts predictions as it
    samples them (`published` for `official`).
    """

    def __init__(
        self, classes: Sequence[str] = CLASSES, base: Sequence[int] = BASE, novel: Sequence[int] = NOVEL
    ) -> None:
        self.classes, self.base, self.novel = classes, base, novel
        super().__init__()

    def reset(self) -> None:
        """Reset the state to no clips."""
        super().reset()
        protocols: tuple[Protocol, ...] = get_args(Protocol)
        self._areas = {protocol: np.zeros((3, len(self.classes)), dtype=np.int64) for protocol in protocols}
        # Per clip `[4, classes]`: hit, predicted and true pixels, frames that show the class.
        self._clip_areas: dict[Protocol, list[npt.NDArray[np.int32]]] = {protocol: [] for protocol in protocols}

    def update(self, predicted: Masks, truth: Masks, facts: ClipFacts = NO_FACTS) -> ClipScore:
        """Add one clip of label maps; see `Metric.update`."""
        found = clip_class_areas(predicted, truth, len(self.classes))
        published = facts.published
        official = found if published is None else clip_class_areas(published, truth, len(self.classes))
        for protocol, total in self._areas.items():
            counts = official if protocol == "official" else found
            areas = np.array([counts.hit, counts.predicted, counts.true, counts.shown])
            total += areas[:3]
            self._clip_areas[protocol].append(areas.astype(np.int32))
        self.frames += len(truth)
        union = found.predicted + found.true - found.hit
        held = union > 0
        return ClipScore(_clip_mean(found.hit[held] / union[held]), None)

    def compute(self, protocol: Protocol) -> Figures:
        """Return `miou`, `base`, `novel` and `harmonic`."""
        check_protocol(protocol, self.frames)
        hit, predicted, true = self._areas[protocol]
        return to_figures(open_vocabulary_figures(protocol, hit, predicted, true, self.base, self.novel))

    def sample(self, protocol: Protocol) -> BootstrapSample:
        """Return the figures of weighted clips."""
        hit, predicted, true, _ = np.stack(self._clip_areas[protocol], axis=1).astype(np.float64)

        def figures(weights: Floats) -> dict[str, Floats]:
            sums = (weights @ hit, weights @ predicted, weights @ true)
            return open_vocabulary_figures(protocol, *sums, base=self.base, novel=self.novel)

        return BootstrapSample(len(hit), figures)

    def per_class(self) -> list[Row]:
        """Return one row per class: part, clips and frames that show it, and `iou`."""
        stack = np.array(self._clip_areas["fixed"])
        hit, predicted, true, shown = stack.sum(axis=0, dtype=np.int64)
        clips = np.count_nonzero(stack[:, 3], axis=0)
        part = ["background" if c == 0 else "base" if c in self.base else "novel" for c in range(len(self.classes))]
        return [
            {"name": name, "part": part[c], "clips": int(clips[c]), "frames": int(shown[c])}
            | {"iou": to_number(ratio(hit[c], predicted[c] + true[c] - hit[c])), "f": None}
            for c, name in enumerate(self.classes)
        ]


def _clip_mean(values: Floats) -> float:
    """The mean over a clip's classes; 1 if every pixel is ignored."""
    return float(values.mean()) if values.size else 1.0
