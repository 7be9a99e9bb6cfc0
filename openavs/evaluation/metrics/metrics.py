"""AVSBench's metrics: J and F of binary masks, per-class mIoU and F, open-vocabulary mIoU, silent frames.

Two protocols, named beside every figure. `official` equals the published evaluation, peculiarities included; `fixed`
keeps the same per-frame definitions (`counting.py`) and mends the rest:

- J: official is the mean over batches of the batch mean; fixed the mean over frames.
- F: official takes the best of 255 thresholds per batch and the mean over batches, where a batch whose truth is empty
  counts 0; fixed averages the curves of all frames with non-empty truth, then takes the best threshold.
- AVSS: official divides by 71, so that absent classes count 0, and the loader's padded frames count for the
  background; fixed leaves out padded frames and the classes that no truth holds.
- OV: official leaves out classes that neither truth nor prediction holds, has a harmonic mean of 0 where no base or no
  novel class is left, and samples predictions as the published code does; fixed leaves out classes that no truth holds
  and samples predictions as the truth (the readers do the sampling).

So a `fixed` figure depends neither on the order of the clips nor on how they are batched, and every system is averaged
over the same classes. Both keep the rule that an empty truth scores J as the share of pixels left unmarked.
Accumulators stream: they keep sums, and of a finished batch two numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.evaluation.datasets.classes import BASE, NOVEL
from openavs.evaluation.metrics.aggregation import (
    Figures,
    Protocol,
    Sums,
    binary_figures,
    check_protocol,
    class_means,
    open_vocabulary_figures,
    plain,
    semantic_figures,
)
from openavs.evaluation.metrics.counting import (
    THRESHOLD_COUNT,
    ClassAreas,
    ClassSums,
    ClipCurves,
    Floats,
    Labels,
    clip_class_areas,
    clip_class_sums,
    clip_curves,
    confusion,
    frame_class_scores,
    frame_f_curve,
    frame_j,
    keep_classes,
    threshold_counts,
    thresholds,
)
from openavs.structures.types import BoolMask

__all__ = [
    "BinaryMetrics",
    "Figures",
    "OpenVocabularyMetrics",
    "Protocol",
    "SemanticMetrics",
    "SilenceMetrics",
    "confusion",
    "frame_class_scores",
    "frame_f_curve",
    "frame_j",
    "keep_classes",
    "threshold_counts",
    "thresholds",
]


# ------------------------------------------------------------------------------------------------ binary: J and F


class BinaryMetrics:
    """J and F over clips, for S4, MS3 and V3. `clips_per_batch` is the batch of `official` (1 in the published script).

    F in `official` depends on it (a mean of maxima falls as batches grow), so name it beside the figure.
    """

    def __init__(self, clips_per_batch: int = 1) -> None:
        if clips_per_batch < 1:
            raise InputError(f"a batch holds at least one clip, not {clips_per_batch}")
        self.clips_per_batch = clips_per_batch
        self.frames = self.sounding = 0
        self._j_sum = self._j_sounding = 0.0
        self._curve = np.zeros(THRESHOLD_COUNT, dtype=np.float64)
        self._finished: list[tuple[float, float]] = []
        self._start_batch()

    def update(self, probability: npt.NDArray[Any], truth: BoolMask) -> dict[str, float | None]:
        """Adds one clip, `[T, H, W]` both, and returns its own `j` and `f` (None for a clip without any true pixel)."""
        clip = clip_curves(probability, truth)
        self.add(clip)
        return {"j": float(clip.j.mean()), "f": clip.f}

    def add(self, clip: ClipCurves) -> None:
        """Adds one clip that was counted already."""
        for curve in clip.curves[:, 0]:
            self._in_curve += curve  # float32, one frame after the other, as published
            self._curve += curve
        self.frames += len(clip.j)
        self.sounding += len(clip.curves)
        self._j_sum += float(clip.j.sum())
        self._j_sounding += float(clip.j[clip.sounding].sum())
        self._in_clips += 1
        self._in_frames += len(clip.j)
        self._in_sounding += len(clip.curves)
        self._in_j += float(clip.j.sum())
        if self._in_clips == self.clips_per_batch:
            self._finished.append(self._batch_scores())
            self._start_batch()

    def batches(self) -> list[tuple[float, float]]:
        """J and F of every batch of `official`; the last one may be smaller."""
        return [*self._finished, self._batch_scores()] if self._in_clips else list(self._finished)

    def compute(self, protocol: Protocol) -> Figures:
        """`miou` (J) and `f` in [0, 1]; in `fixed` also `miou_sounding`, J over frames with non-empty truth."""
        check_protocol(protocol, self.frames)
        if protocol == "official":
            j, f = np.mean(self.batches(), axis=0)  # a last, smaller batch weighs as much as the others
            return {"miou": float(j), "f": float(f)}
        j, frames, j_sounding, sounding = np.array([self._j_sum, self.frames, self._j_sounding, self.sounding])
        return plain(binary_figures(j, frames, j_sounding, sounding, self._curve))

    def mean_f_curve(self) -> Floats:
        """The mean F at each threshold over all frames with non-empty truth, float64 `[255]`."""
        return self._curve / max(self.sounding, 1)

    def _start_batch(self) -> None:
        self._in_clips = self._in_frames = self._in_sounding = 0
        self._in_j = 0.0
        self._in_curve = np.zeros(THRESHOLD_COUNT, dtype=np.float32)

    def _batch_scores(self) -> tuple[float, float]:
        best = float((self._in_curve / np.float32(self._in_sounding)).max()) if self._in_sounding else 0.0
        return self._in_j / self._in_frames, best


# -------------------------------------------------------------------------------------------- semantic: AVSS and OV


class SemanticMetrics:
    """AVSS: per-class means of per-frame IoU and F over the frames that hold the class in truth or prediction.

    `pad_to` is the number of frames to which the published loader fills up every clip with empty ones (10).
    """

    def __init__(self, classes: int = 71, pad_to: int = 10) -> None:
        self.classes, self.pad_to = classes, pad_to
        self.frames = self.padded = 0
        self._iou = np.zeros(classes)
        self._f = np.zeros(classes)
        self._held = np.zeros(classes, dtype=np.int64)
        self._shown = np.zeros(classes, dtype=np.int64)

    def update(self, predicted: Labels, truth: Labels) -> None:
        """Adds one clip of label maps `[T, H, W]`, its real frames only (`official` adds the padding itself)."""
        self.add(clip_class_sums(predicted, truth, self.classes), len(predicted))

    def add(self, clip: ClassSums, frames: int) -> None:
        """Adds one clip that was counted already."""
        self._iou += clip.iou
        self._f += clip.f
        self._held += clip.held
        self._shown += clip.shown
        self.frames += frames
        self.padded += max(0, self.pad_to - frames)

    def per_class(self, protocol: Protocol) -> tuple[Floats, Floats, BoolMask]:
        """IoU and F of every class `[classes]` and which of them the protocol's means count."""
        return class_means(protocol, *self._sums())

    def compute(self, protocol: Protocol) -> Figures:
        """`miou`, `f` and their `_foreground` means, in [0, 1].

        The published "without background" leaves out the last class (70, woman) instead of the first; `official` gives
        it as published, named `miou_nobg` and `f_nobg`.
        """
        check_protocol(protocol, self.frames)
        return plain(semantic_figures(protocol, *self._sums()))

    def _sums(self) -> tuple[Sums, Sums, Sums, Sums, Sums]:
        return self._iou, self._f, self._held, self._shown, np.asarray(self.padded)


class OpenVocabularyMetrics:
    """AVSBench-OV: pixels counted over all frames together, and the mean IoU of base and novel classes."""

    def __init__(self, base: Sequence[int] = BASE, novel: Sequence[int] = NOVEL, classes: int = 71) -> None:
        self.base, self.novel, self.classes = list(base), list(novel), classes
        self.frames = 0
        self._areas = np.zeros((3, classes), dtype=np.int64)

    def update(self, predicted: Labels, truth: Labels) -> None:
        """Adds one clip of label maps `[T, H, W]`; labels outside of the classes are ignored on both sides."""
        self.add(clip_class_areas(predicted, truth, self.classes), len(predicted))

    def add(self, clip: ClassAreas, frames: int) -> None:
        """Adds one clip that was counted already."""
        self._areas += (clip.hit, clip.predicted, clip.true)
        self.frames += frames

    def compute(self, protocol: Protocol) -> Figures:
        """`miou` (background included), `base`, `novel` and their `harmonic` mean; None where no class is held."""
        check_protocol(protocol, self.frames)
        hit, predicted, true = self._areas
        return plain(open_vocabulary_figures(protocol, hit, predicted, true, self.base, self.novel))


class SilenceMetrics:
    """Frames where nothing on screen sounds: how often the prediction is empty, and how much is marked where it is not.

    Whether a frame is silent is the caller's to say (an empty truth: silence, or a sound from off the screen).
    """

    def __init__(self) -> None:
        self.frames = self.empty = 0
        self._area = 0.0

    def update(self, predicted: npt.NDArray[Any], silent: npt.NDArray[np.bool_]) -> None:
        """Adds one clip: masks or label maps `[T, H, W]` (non-zero is marked) and which frames `[T]` are silent."""
        for frame in predicted[silent]:
            marked = int(np.count_nonzero(frame))
            self.frames += 1
            self.empty += marked == 0
            self._area += marked / frame.size

    def compute(self, name: str = "silent") -> Figures:
        """`<name>_accuracy` (share left empty) and `<name>_area` (mean share of pixels marked); None without frames."""
        if not self.frames:
            return {f"{name}_accuracy": None, f"{name}_area": None}
        return {f"{name}_accuracy": self.empty / self.frames, f"{name}_area": self._area / self.frames}
