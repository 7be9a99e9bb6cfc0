"""What AVSBench's metrics are made of: pure functions of one frame or clip, by histograms and not by comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.structures.types import BoolMask

Counts = npt.NDArray[np.int64]
Curve = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer[Any]]

THRESHOLD_COUNT = 255
_BETA2 = np.float32(0.3)
_ONE_PLUS_BETA2 = np.float32(1.3)


def thresholds() -> Curve:
    """The 255 float32 thresholds of the official F: 0, 1/254, ..., 1, rounded as `torch.linspace` rounds them."""
    step = float(np.float32(1.0 / 254.0))
    k = np.arange(THRESHOLD_COUNT, dtype=np.float64)
    return np.where(k < 127, step * k, 1.0 - step * (254 - k)).astype(np.float32)


_THRESHOLDS = thresholds()
# An 8-bit value v stands for v / 255: how many thresholds it reaches, less one.
_BIN_OF_BYTE = np.searchsorted(_THRESHOLDS, np.arange(256, dtype=np.float32) / np.float32(255), side="right") - 1


def frame_j(probability: npt.NDArray[Any], truth: BoolMask) -> float:
    """The Jaccard index of one frame, foreground where the probability is above 0.5, in float32 as published.

    `probability` is `[H, W]`: float in [0, 1], uint8 (value / 255) or bool; `truth` is bool `[H, W]`. An empty truth
    scores the share of pixels that are not predicted.
    """
    predicted = _foreground(probability)
    if not truth.any():
        inter, union = truth.size - int(np.count_nonzero(predicted)), truth.size
    else:
        inter, union = int(np.count_nonzero(predicted & truth)), int(np.count_nonzero(predicted | truth))
    return float(np.float32(inter) / (np.float32(union) + np.float32(1e-7)))


def threshold_counts(probability: npt.NDArray[Any], truth: BoolMask) -> tuple[Counts, Counts]:
    """How many pixels `[255]`, and how many true ones `[255]`, reach each threshold (>=)."""
    if probability.dtype == np.bool_:
        probability = probability.astype(np.uint8) * np.uint8(255)
    if probability.dtype == np.uint8:
        joint = np.bincount((probability.astype(np.intp) + 256 * truth).ravel(), minlength=512).reshape(2, 256)
        by_value = np.zeros((2, THRESHOLD_COUNT), dtype=np.int64)
        for row, counts in zip(by_value, joint, strict=True):
            np.add.at(row, _BIN_OF_BYTE, counts)
    else:
        values = probability.astype(np.float32, copy=False).ravel()
        nearest = np.rint(values * np.float32(254)).astype(np.intp)  # the one threshold that rounding could decide
        nearest -= values < _THRESHOLDS.take(nearest)
        nearest += THRESHOLD_COUNT * truth.ravel()
        by_value = np.bincount(nearest, minlength=2 * THRESHOLD_COUNT).reshape(2, THRESHOLD_COUNT)
    reached = by_value[:, ::-1].cumsum(axis=1)[:, ::-1]
    return reached.sum(axis=0), reached[1]


def frame_f_curve(probability: npt.NDArray[Any], truth: BoolMask) -> Curve:
    """F (beta squared 0.3) of one frame at each of the 255 thresholds, float32 `[255]`; 0 where it is undefined."""
    f: Curve = frame_curves(probability, truth)[0]
    return f


def frame_curves(probability: npt.NDArray[Any], truth: BoolMask) -> Curve:
    """F (beta squared 0.3), precision and recall of one frame at the 255 thresholds, float32 `[3, 255]`.

    F is 0 where it is undefined, precision where nothing reaches the threshold: both as published.
    """
    positive, hit = threshold_counts(probability, truth)
    tiny = np.float32(1e-20)
    precision = hit.astype(np.float32) / (positive.astype(np.float32) + tiny)
    recall = hit.astype(np.float32) / (np.float32(np.count_nonzero(truth)) + tiny)
    with np.errstate(invalid="ignore"):
        f = _ONE_PLUS_BETA2 * precision * recall / (_BETA2 * precision + recall)
    f[np.isnan(f)] = 0.0
    return np.stack([f, precision, recall])


@dataclass(frozen=True)
class ClipCurves:
    """One clip's J per frame `[T]`, which frames `[T]` have any truth, and those frames' curves `[S, 3, 255]`."""

    j: Floats
    sounding: BoolMask
    curves: Curve

    @property
    def f(self) -> float | None:
        """The clip's own F: the best threshold of the mean curve; None without any true pixel."""
        return float(self.curves[:, 0].mean(axis=0).max()) if len(self.curves) else None


def clip_curves(probability: npt.NDArray[Any], truth: BoolMask) -> ClipCurves:
    """What J and F of a clip are made of; `[T, H, W]` both, as in `frame_j`.

    Raises:
        InputError: shapes or types that do not fit, or values that are no probabilities.
    """
    _check_binary(probability, truth)
    j = np.array([frame_j(*pair) for pair in zip(probability, truth, strict=True)])
    sounding = np.asarray(truth.any(axis=(1, 2)), dtype=np.bool_)
    curves = [frame_curves(p, t) for p, t, s in zip(probability, truth, sounding, strict=True) if s]
    return ClipCurves(j, sounding, np.stack(curves) if curves else np.zeros((0, 3, THRESHOLD_COUNT), np.float32))


def _check_binary(probability: npt.NDArray[Any], truth: BoolMask) -> None:
    if truth.dtype != np.bool_ or truth.ndim != 3 or not truth.size:
        raise InputError(f"a binary truth is bool [T, H, W], not {truth.dtype} {list(truth.shape)}")
    if probability.shape != truth.shape:
        raise InputError(f"a prediction of {list(probability.shape)} does not fit a truth of {list(truth.shape)}")
    if probability.dtype.kind == "f" and not (probability.min() >= 0 and probability.max() <= 1):  # NaN fails both
        raise InputError("a prediction holds values outside of [0, 1] or NaN; give probabilities, not logits")
    if probability.dtype.kind != "f" and probability.dtype not in (np.uint8, np.bool_):
        raise InputError(f"a prediction is float in [0, 1], uint8 or bool, not {probability.dtype}")


def _foreground(probability: npt.NDArray[Any]) -> BoolMask:
    if probability.dtype == np.bool_:
        return probability
    if probability.dtype == np.uint8:
        return np.asarray(probability > 127)
    return np.asarray(probability.astype(np.float32, copy=False) > 0.5)


def confusion(predicted: Labels, truth: Labels, classes: int) -> Counts:
    """Pixels by true class (row) and predicted class (column), int64 `[classes + 1, classes]`, of any equal shapes.

    The last row holds pixels whose label is `classes` or more (255): no class's area, yet a false positive of what is
    predicted there, as in the published code. Pixels labelled below 0 are ignored on both sides.
    """
    if predicted.shape != truth.shape:
        raise InputError(f"a prediction of {list(predicted.shape)} does not fit a truth of {list(truth.shape)}")
    if predicted.size and (int(predicted.min()) < 0 or int(predicted.max()) >= classes):
        raise InputError(f"a prediction holds a label outside of 0 to {classes - 1}; write class indices")
    if truth.dtype.kind == "i" and truth.size and int(truth.min()) < 0:
        kept = truth >= 0
        predicted, truth = predicted[kept], truth[kept]
    small = (classes + 1) * classes <= 1 << 16  # two bytes a pixel take a third less time
    rows = np.minimum(truth, classes).astype(np.uint16 if small else np.intp)
    np.multiply(rows, classes, out=rows)
    np.add(rows, predicted, out=rows, casting="unsafe")  # fits: it was checked
    return np.bincount(rows.ravel(), minlength=(classes + 1) * classes).reshape(classes + 1, classes)


def areas(matrix: Counts) -> tuple[Counts, Counts, Counts]:
    """True positives, predicted and true pixels per class, `[..., classes]` each, of `confusion` matrices."""
    square = matrix[..., :-1, :]
    return square.diagonal(axis1=-2, axis2=-1).astype(np.int64), matrix.sum(axis=-2), square.sum(axis=-1)


def frame_class_scores(matrix: Counts) -> tuple[Floats, Floats, BoolMask]:
    """A frame's IoU and F (beta squared 0.3) per class, 0 where undefined, and which classes it holds.

    `[..., classes]` each, of `confusion` matrices `[..., classes + 1, classes]`.
    """
    hit, predicted, true = (count.astype(np.float64) for count in areas(matrix))
    union = predicted + true - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = hit / predicted, hit / true
        f = np.nan_to_num(1.3 * precision * recall / (0.3 * precision + recall), nan=0.0)
    return hit / (union + 2.2e-16), f, union > 0


@dataclass(frozen=True)
class ClassSums:
    """Sums over frames per class, `[classes]` each: IoU, F, frames that hold it in truth or prediction, or in truth."""

    iou: Floats
    f: Floats
    held: Counts
    shown: Counts


def clip_class_sums(predicted: Labels, truth: Labels, classes: int) -> ClassSums:
    """What AVSS's means are made of, of one clip of label maps `[T, H, W]`, each frame on its own."""
    frames = _confusions(predicted, truth, classes)
    iou, f, held = frame_class_scores(frames)
    shown = np.count_nonzero(frames[:, :-1].any(axis=2), axis=0)
    return ClassSums(iou.sum(axis=0), f.sum(axis=0), held.sum(axis=0), shown)


@dataclass(frozen=True)
class ClassAreas:
    """Pixels per class over a clip, `[classes]` each: hit, predicted and true; and the frames whose truth holds it."""

    hit: Counts
    predicted: Counts
    true: Counts
    shown: Counts


def clip_class_areas(predicted: Labels, truth: Labels, classes: int) -> ClassAreas:
    """What AVSBench-OV's IoU is made of, of one clip `[T, H, W]`: pixels whose truth is no class count nowhere."""
    squares = _confusions(predicted, truth, classes)[:, :-1]
    whole = squares.sum(axis=0)
    shown = np.count_nonzero(squares.any(axis=2), axis=0)
    return ClassAreas(whole.diagonal().astype(np.int64), whole.sum(axis=0), whole.sum(axis=1), shown)


def _confusions(predicted: Labels, truth: Labels, classes: int) -> Counts:
    """The matrix of every frame, `[T, classes + 1, classes]`."""
    if predicted.ndim != 3 or not predicted.size:
        raise InputError(f"label maps are [T, H, W], not {list(predicted.shape)}")
    if predicted.shape != truth.shape:
        raise InputError(f"a prediction of {list(predicted.shape)} does not fit a truth of {list(truth.shape)}")
    return np.stack([confusion(*pair, classes) for pair in zip(predicted, truth, strict=True)])


def keep_classes(truth: Labels, allowed: Sequence[int]) -> Labels:
    """AVSBench-OV's cleaning of a label map: pixels of classes that the clip's metadata does not name become 0."""
    return np.where(np.isin(truth, list(allowed)), truth, 0).astype(truth.dtype)
