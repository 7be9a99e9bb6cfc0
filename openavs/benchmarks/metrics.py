"""AVSBench's metrics: J and F of binary masks, per-class mIoU and F, open-vocabulary mIoU, silent frames.

Two protocols, named beside every figure. `official` equals the published evaluation, peculiarities included; `fixed`
keeps the same per-frame definitions (`counting.py`) and mends the rest:

- J: official is the mean over batches of the batch mean; fixed the mean over frames.
- F: official takes the best of 255 thresholds per batch and the mean over batches, where a batch whose truth is empty
  counts 0; fixed averages the curves of all frames with non-empty truth, then takes the best threshold.
- AVSS: official divides by 71, so that absent classes count 0, and the loader's padded frames count for the
  background; fixed leaves out padded frames and the classes that no truth holds.
- OV: official leaves out classes that neither truth nor prediction holds; fixed those that no truth holds.

So a `fixed` figure depends neither on the order of the clips nor on how they are batched, and every system is averaged
over the same classes. Both keep the rule that an empty truth scores J as the share of pixels left unmarked.
Accumulators stream: their memory does not grow with the number of clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from openavs.benchmarks.classes import BASE, NOVEL
from openavs.benchmarks.counting import (
    THRESHOLD_COUNT,
    Curve,
    Labels,
    areas,
    confusion,
    frame_class_scores,
    frame_f_curve,
    frame_j,
    keep_classes,
    threshold_counts,
    thresholds,
)
from openavs.types import BoolMask, InputError

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

Protocol = Literal["official", "fixed"]
Figures = dict[str, float | None]


# ------------------------------------------------------------------------------------------------ binary: J and F


class BinaryMetrics:
    """J and F over clips, for S4, MS3 and V3. `clips_per_batch` is the batch of `official` (1 in the published script).

    F in `official` depends on it (a mean of maxima falls as batches grow), so name it beside the figure.
    """

    def __init__(self, clips_per_batch: int = 1) -> None:
        if clips_per_batch < 1:
            raise InputError(f"a batch holds at least one clip, not {clips_per_batch}")
        self.clips_per_batch = clips_per_batch
        self.clips = self.frames = self.sounding = 0
        self._j_sum = self._j_sounding = 0.0
        self._curve = np.zeros(THRESHOLD_COUNT, dtype=np.float64)
        self._batches = 0
        self._batch_j = self._batch_f = 0.0  # sums over finished batches
        self._start_batch()

    def update(self, probability: npt.NDArray[Any], truth: BoolMask) -> dict[str, float | None]:
        """Adds one clip, `[T, H, W]` both, and returns its own `j` and `f` (None for a clip without any true pixel)."""
        _check_binary(probability, truth)
        scores: list[float] = []
        curves: list[Curve] = []
        for predicted, true in zip(probability, truth, strict=True):
            scores.append(frame_j(predicted, true))
            if true.any():
                curves.append(frame_f_curve(predicted, true))
                self._j_sounding += scores[-1]
        for curve in curves:
            self._in_curve += curve  # float32, one frame after the other, as published
            self._curve += curve
        self.clips += 1
        self.frames += len(scores)
        self.sounding += len(curves)
        self._j_sum += sum(scores)
        self._in_clips += 1
        self._in_frames += len(scores)
        self._in_sounding += len(curves)
        self._in_j += sum(scores)
        if self._in_clips == self.clips_per_batch:
            j, f = self._batch_scores()
            self._batch_j, self._batch_f, self._batches = self._batch_j + j, self._batch_f + f, self._batches + 1
            self._start_batch()
        return {"j": sum(scores) / len(scores), "f": float(np.mean(curves, axis=0).max()) if curves else None}

    def compute(self, protocol: Protocol) -> Figures:
        """`miou` (J) and `f` in [0, 1]; in `fixed` also `miou_sounding`, J over frames with non-empty truth."""
        _check_protocol(protocol, self.frames)
        if protocol == "official":
            j, f, batches = self._batch_j, self._batch_f, self._batches
            if self._in_clips:  # the last, smaller batch weighs as much as the others
                last_j, last_f = self._batch_scores()
                j, f, batches = j + last_j, f + last_f, batches + 1
            return {"miou": j / batches, "f": f / batches}
        if not self.sounding:
            return {"miou": self._j_sum / self.frames, "f": None, "miou_sounding": None}
        best = float((self._curve / self.sounding).max())
        return {"miou": self._j_sum / self.frames, "f": best, "miou_sounding": self._j_sounding / self.sounding}

    def mean_f_curve(self) -> npt.NDArray[np.float64]:
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
        self.clips = self.frames = self.padded = 0
        self._iou = np.zeros(classes)
        self._f = np.zeros(classes)
        self._held = np.zeros(classes, dtype=np.int64)
        self._in_truth = np.zeros(classes, dtype=np.bool_)

    def update(self, predicted: Labels, truth: Labels) -> None:
        """Adds one clip of label maps `[T, H, W]`, its real frames only (`official` adds the padding itself)."""
        if predicted.ndim != 3 or predicted.shape != truth.shape or not predicted.size:
            raise InputError(f"label maps are [T, H, W], not {list(predicted.shape)} and {list(truth.shape)}")
        for one, other in zip(predicted, truth, strict=True):
            matrix = confusion(one, other, self.classes)
            iou, f, held = frame_class_scores(matrix)
            self._iou += iou
            self._f += f
            self._held += held
            self._in_truth |= areas(matrix)[2] > 0
        self.clips += 1
        self.frames += len(predicted)
        self.padded += max(0, self.pad_to - len(predicted))

    def per_class(self, protocol: Protocol) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], BoolMask]:
        """IoU and F of every class `[classes]` and which of them the protocol's means count."""
        iou, f, held = self._iou.copy(), self._f.copy(), self._held.copy()
        counted = self._in_truth.copy()
        if protocol == "official":
            for sums in (iou, f, held):
                sums[0] += self.padded  # an empty frame on an empty frame: IoU and F of the background are 1
            counted[:] = True
        return iou / np.maximum(held, 1), f / np.maximum(held, 1), counted

    def compute(self, protocol: Protocol) -> Figures:
        """`miou`, `f` and their `_foreground` means, in [0, 1].

        The published "without background" leaves out the last class (70, woman) instead of the first; `official` gives
        it as published, named `miou_nobg` and `f_nobg`.
        """
        _check_protocol(protocol, self.frames)
        iou, f, counted = self.per_class(protocol)
        figures: Figures = {"miou": _mean(iou, counted), "f": _mean(f, counted)}
        if protocol == "official":
            figures |= {"miou_nobg": _mean(iou[:-1], counted[:-1]), "f_nobg": _mean(f[:-1], counted[:-1])}
        foreground = {"miou_foreground": _mean(iou[1:], counted[1:]), "f_foreground": _mean(f[1:], counted[1:])}
        return figures | foreground


class OpenVocabularyMetrics:
    """AVSBench-OV: one confusion matrix over all frames, and the mean IoU of base and novel classes."""

    def __init__(self, base: Sequence[int] = BASE, novel: Sequence[int] = NOVEL, classes: int = 71) -> None:
        self.base, self.novel, self.classes = list(base), list(novel), classes
        self.clips = self.frames = 0
        self._matrix = np.zeros((classes + 1, classes), dtype=np.int64)

    def update(self, predicted: Labels, truth: Labels) -> None:
        """Adds one clip of label maps `[T, H, W]`; labels outside of the classes are ignored on both sides."""
        if predicted.ndim != 3 or not predicted.size:
            raise InputError(f"label maps are [T, H, W], not {list(predicted.shape)}")
        self._matrix += confusion(predicted, truth, self.classes)
        self.clips += 1
        self.frames += len(predicted)

    def per_class(self, protocol: Protocol) -> tuple[npt.NDArray[np.float64], BoolMask]:
        """IoU of every class over the whole set `[classes]` and which of them the protocol's means count."""
        square = np.concatenate([self._matrix[:-1], np.zeros((1, self.classes), dtype=np.int64)])
        hit, predicted, true = areas(square)
        union = predicted + true - hit
        return hit / np.maximum(union, 1), (union if protocol == "official" else true) > 0

    def compute(self, protocol: Protocol) -> Figures:
        """`miou` (background included), `base`, `novel` and their `harmonic` mean; None where no class is held."""
        _check_protocol(protocol, self.frames)
        iou, counted = self.per_class(protocol)
        base, novel = (_mean(iou[group], counted[group]) for group in (self.base, self.novel))
        harmonic = None
        if base is not None and novel is not None:
            harmonic = 2 * base * novel / (base + novel) if base + novel > 0 else 0.0
        return {"miou": _mean(iou, counted), "base": base, "novel": novel, "harmonic": harmonic}


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
            marked = np.count_nonzero(frame)
            self.frames += 1
            self.empty += marked == 0
            self._area += marked / frame.size

    def compute(self) -> Figures:
        """`silent_accuracy` and `silent_area` (mean share of pixels marked) in [0, 1]; None without silent frames."""
        if not self.frames:
            return {"silent_accuracy": None, "silent_area": None}
        return {"silent_accuracy": self.empty / self.frames, "silent_area": self._area / self.frames}


# ------------------------------------------------------------------------------------------------------------ checks


def _check_binary(probability: npt.NDArray[Any], truth: BoolMask) -> None:
    if truth.dtype != np.bool_ or truth.ndim != 3 or not truth.size:
        raise InputError(f"a binary truth is bool [T, H, W], not {truth.dtype} {list(truth.shape)}")
    if probability.shape != truth.shape:
        raise InputError(f"a prediction of {list(probability.shape)} does not fit a truth of {list(truth.shape)}")
    if probability.dtype.kind == "f" and not (probability.min() >= 0 and probability.max() <= 1):  # NaN fails both
        raise InputError("a prediction holds values outside of [0, 1] or NaN; give probabilities, not logits")
    if probability.dtype.kind != "f" and probability.dtype not in (np.uint8, np.bool_):
        raise InputError(f"a prediction is float in [0, 1], uint8 or bool, not {probability.dtype}")


def _check_protocol(protocol: str, frames: int) -> None:
    if protocol not in ("official", "fixed"):
        raise InputError(f"the protocol is 'official' or 'fixed', not {protocol!r}")
    if not frames:
        raise InputError("there is nothing to score: no clip was added")


def _mean(values: npt.NDArray[np.float64], counted: BoolMask) -> float | None:
    return float(values[counted].mean()) if counted.any() else None
