"""Metric functions of AVSBench: per-frame scores, and figures from sums over clips.

The first half counts one frame or clip: J and F of binary masks, IoU and F per class of label maps. The second half
turns sums over clips into the figures of the two protocols; `metrics.py` explains how they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.structures.types import BoolMask

Protocol = Literal["official", "fixed"]
Figures = dict[str, float | None]
"""Figures by name; None if undefined."""

Counts = npt.NDArray[np.int64]
Curve = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer[Any]]
Sums = npt.NDArray[Any]

THRESHOLD_COUNT = 255
_BETA2 = np.float32(0.3)
_ONE_PLUS_BETA2 = np.float32(1.3)


# ---------------------------------------------------------------------------------------------------- binary masks


def thresholds() -> Curve:
    """Return the 255 float32 thresholds of the official F: 0, 1/254, ..., 1, rounded as `torch.linspace` does."""
    step = float(np.float32(1.0 / 254.0))
    k = np.arange(THRESHOLD_COUNT, dtype=np.float64)
    return np.where(k < 127, step * k, 1.0 - step * (254 - k)).astype(np.float32)


_THRESHOLDS = thresholds()
# An 8-bit value v means v / 255. The table holds the number of thresholds that it reaches, minus one.
_BIN_OF_BYTE = np.searchsorted(_THRESHOLDS, np.arange(256, dtype=np.float32) / np.float32(255), side="right") - 1


def frame_j(probability: npt.NDArray[Any], truth: BoolMask, threshold: float = 0.5) -> float:
    """Return the Jaccard index of one frame, in float32 as in the published code.

    With an empty truth, it is the share of pixels that are not predicted (AVSBench's `mask_iou`).

    Args:
        probability: `[H, W]`, float in [0, 1], uint8 (value / 255) or bool; above the threshold is foreground.
        truth: bool `[H, W]`.
        threshold: the probability.
    """
    predicted = _foreground(probability, threshold)
    if not truth.any():
        inter, union = truth.size - int(np.count_nonzero(predicted)), truth.size
    else:
        inter, union = int(np.count_nonzero(predicted & truth)), int(np.count_nonzero(predicted | truth))
    return float(np.float32(inter) / (np.float32(union) + np.float32(1e-7)))


def _foreground(probability: npt.NDArray[Any], threshold: float) -> BoolMask:
    if probability.dtype == np.bool_:
        return probability
    if probability.dtype == np.uint8:
        return np.asarray(probability > int(255 * threshold))
    return np.asarray(probability.astype(np.float32, copy=False) > np.float32(threshold))


def threshold_counts(probability: npt.NDArray[Any], truth: BoolMask) -> tuple[Counts, Counts]:
    """Count the pixels, and the true pixels, that reach each threshold (>=): int64 `[255]` each.

    One histogram and a cumulative sum replace the 255 comparisons of the published code; the counts are equal.
    """
    if probability.dtype == np.bool_:
        probability = probability.astype(np.uint8) * np.uint8(255)
    if probability.dtype == np.uint8:
        by_value = np.zeros((2, THRESHOLD_COUNT), dtype=np.int64)
        for row, values in zip(by_value, (probability.ravel(), probability[truth]), strict=True):
            np.add.at(row, _BIN_OF_BYTE, np.bincount(values, minlength=256))
        by_value[0] -= by_value[1]
    else:
        values = probability.astype(np.float32, copy=False).ravel()
        # Rounding finds the nearest threshold; one comparison decides whether the value reaches it.
        nearest = np.rint(values * np.float32(254)).astype(np.intp)
        nearest -= values < _THRESHOLDS.take(nearest)
        nearest += THRESHOLD_COUNT * truth.ravel()
        by_value = np.bincount(nearest, minlength=2 * THRESHOLD_COUNT).reshape(2, THRESHOLD_COUNT)
    reached = by_value[:, ::-1].cumsum(axis=1)[:, ::-1]
    return reached.sum(axis=0), reached[1]


def frame_f_curve(probability: npt.NDArray[Any], truth: BoolMask) -> Curve:
    """Return F (beta squared 0.3) of one frame at the 255 thresholds, float32 `[255]`; 0 if undefined."""
    f: Curve = frame_curves(probability, truth)[0]
    return f


def frame_curves(probability: npt.NDArray[Any], truth: BoolMask) -> Curve:
    """Return F, precision and recall of one frame at the 255 thresholds, float32 `[3, 255]`.

    As in the published code, undefined F is 0, and precision is 0 if no pixel reaches the threshold.
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
    """J of each frame `[T]`, a flag for frames with any true pixel `[T]`, and the curves of those `[S, 3, 255]`."""

    j: Floats
    sounding: BoolMask
    curves: Curve

    @property
    def f(self) -> float | None:
        """The best value of the clip's mean F curve; None without any true pixel."""
        return float(self.curves[:, 0].mean(axis=0).max()) if len(self.curves) else None


def clip_curves(probability: npt.NDArray[Any], truth: BoolMask, threshold: float = 0.5) -> ClipCurves:
    """Compute J and the curves of one clip; the masks are `[T, H, W]`, all as in `frame_j`.

    Raises:
        InputError: shapes or types that do not match, or values outside [0, 1].
    """
    _check_binary(probability, truth)
    j = np.array([frame_j(*pair, threshold) for pair in zip(probability, truth, strict=True)])
    sounding = np.asarray(truth.any(axis=(1, 2)), dtype=np.bool_)
    curves = [frame_curves(p, t) for p, t, s in zip(probability, truth, sounding, strict=True) if s]
    return ClipCurves(j, sounding, np.stack(curves) if curves else np.zeros((0, 3, THRESHOLD_COUNT), np.float32))


def _check_binary(probability: npt.NDArray[Any], truth: BoolMask) -> None:
    if truth.dtype != np.bool_ or truth.ndim != 3 or not truth.size:
        raise InputError(f"a binary truth is bool [T, H, W], not {truth.dtype} {list(truth.shape)}")
    _check_shapes(probability, truth)
    if probability.dtype.kind == "f" and not (probability.min() >= 0 and probability.max() <= 1):  # NaN fails both
        raise InputError("a prediction holds values outside [0, 1] or NaN; give probabilities, not logits")
    if probability.dtype.kind != "f" and probability.dtype not in (np.uint8, np.bool_):
        raise InputError(f"a prediction is float in [0, 1], uint8 or bool, not {probability.dtype}")


def _check_shapes(predicted: npt.NDArray[Any], truth: npt.NDArray[Any]) -> None:
    if predicted.shape != truth.shape:
        raise InputError(f"a prediction of {list(predicted.shape)} does not fit a truth of {list(truth.shape)}")


# ------------------------------------------------------------------------------------------------------ label maps


def confusion(predicted: Labels, truth: Labels, classes: int) -> Counts:
    """Count pixels by true class (row) and predicted class (column), for arrays of any equal shape.

    As in the published code, pixels labeled `classes` or more (such as 255) belong to no class, but what is predicted
    there is a false positive; they fill the last row. Pixels labeled below 0 are ignored on both sides.

    Returns:
        int64 `[classes + 1, classes]`.

    Raises:
        InputError: shapes that differ, or a predicted label outside 0 to `classes - 1`.
    """
    _check_shapes(predicted, truth)
    if predicted.size and (int(predicted.min()) < 0 or int(predicted.max()) >= classes):
        raise InputError(f"a prediction holds a label outside of 0 to {classes - 1}; write class indices")
    if truth.dtype.kind == "i" and truth.size and int(truth.min()) < 0:
        kept = truth >= 0
        predicted, truth = predicted[kept], truth[kept]
    small = (classes + 1) * classes <= 1 << 16  # two bytes a pixel are a third faster
    rows = np.minimum(truth, classes).astype(np.uint16 if small else np.intp)
    np.multiply(rows, classes, out=rows)
    np.add(rows, predicted, out=rows, casting="unsafe")  # cannot overflow: the labels were checked
    return np.bincount(rows.ravel(), minlength=(classes + 1) * classes).reshape(classes + 1, classes)


def areas(matrix: Counts) -> tuple[Counts, Counts, Counts]:
    """Return true positives, predicted and true pixels per class, `[..., classes]` each, of `confusion` matrices."""
    square = matrix[..., :-1, :]
    return square.diagonal(axis1=-2, axis2=-1).astype(np.int64), matrix.sum(axis=-2), square.sum(axis=-1)


def frame_class_scores(matrix: Counts) -> tuple[Floats, Floats, BoolMask]:
    """Return IoU and F (beta squared 0.3) of every class of a frame, and the classes that it holds.

    Undefined values are 0. All are `[..., classes]`, from `confusion` matrices `[..., classes + 1, classes]`.
    """
    hit, predicted, true = (count.astype(np.float64) for count in areas(matrix))
    union = predicted + true - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = hit / predicted, hit / true
        f = np.nan_to_num(1.3 * precision * recall / (0.3 * precision + recall), nan=0.0)
    return hit / (union + 2.2e-16), f, union > 0


@dataclass(frozen=True)
class ClassSums:
    """Sums over the frames of a clip, `[classes]` each.

    `held` counts the frames with the class in truth or prediction, `shown` those with it in the truth.
    """

    iou: Floats
    f: Floats
    held: Counts
    shown: Counts


def clip_class_sums(predicted: Labels, truth: Labels, classes: int) -> ClassSums:
    """Compute the per-frame scores of AVSS, summed over one clip of label maps `[T, H, W]`."""
    frames = _confusions(predicted, truth, classes)
    iou, f, held = frame_class_scores(frames)
    shown = np.count_nonzero(frames[:, :-1].any(axis=2), axis=0)
    return ClassSums(iou.sum(axis=0), f.sum(axis=0), held.sum(axis=0), shown)


@dataclass(frozen=True)
class ClassAreas:
    """Pixels per class over a clip, `[classes]` each; `shown` counts the frames with the class in the truth."""

    hit: Counts
    predicted: Counts
    true: Counts
    shown: Counts


def clip_class_areas(predicted: Labels, truth: Labels, classes: int) -> ClassAreas:
    """Compute the pixel counts of AVSBench-OV over one clip `[T, H, W]`; pixels without a true class are ignored."""
    squares = _confusions(predicted, truth, classes)[:, :-1]
    whole = squares.sum(axis=0)
    shown = np.count_nonzero(squares.any(axis=2), axis=0)
    return ClassAreas(whole.diagonal().astype(np.int64), whole.sum(axis=0), whole.sum(axis=1), shown)


def _confusions(predicted: Labels, truth: Labels, classes: int) -> Counts:
    """The matrix of every frame, `[T, classes + 1, classes]`."""
    if predicted.ndim != 3 or not predicted.size:
        raise InputError(f"label maps are [T, H, W], not {list(predicted.shape)}")
    _check_shapes(predicted, truth)
    return np.stack([confusion(*pair, classes) for pair in zip(predicted, truth, strict=True)])


def keep_classes(truth: Labels, allowed: Sequence[int]) -> Labels:
    """Set the pixels of all other classes than `allowed` to 0, as AVSBench-OV does by the clip's metadata."""
    return np.where(np.isin(truth, list(allowed)), truth, 0).astype(truth.dtype)


# ---------------------------------------------------------------------------------------------- figures from sums
# Every argument is an array of sums, `[...]` or per class `[..., classes]`: one row for a whole split, or one row per
# bootstrap resample. Undefined results are NaN.


def ratio(top: Sums, bottom: Sums) -> Floats:
    """Return quotients, NaN where the bottom is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64))
    quotients = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=quotients, where=bottom > 0)
    return quotients


def masked_mean(values: Sums, counted: Sums) -> Floats:
    """Return the mean over the last axis of the counted values, NaN without any."""
    return ratio(np.where(counted, values, 0.0).sum(axis=-1), counted.sum(axis=-1))


def to_figures(values: dict[str, Floats]) -> Figures:
    """Convert one row of figures to plain numbers."""
    return {name: to_number(value) for name, value in values.items()}


def to_number(value: Floats) -> float | None:
    """Convert one value to a plain number, NaN to None."""
    return None if np.isnan(value) else float(value)


def check_protocol(protocol: str, frames: int) -> None:
    """Raise InputError for an unknown protocol or an empty split."""
    if protocol not in ("official", "fixed"):
        raise InputError(f"the protocol is 'official' or 'fixed', not {protocol!r}")
    if not frames:
        raise InputError("there is nothing to score: no clip was added")


def binary_figures(j: Sums, frames: Sums, j_sounding: Sums, sounding: Sums, curve: Sums) -> dict[str, Floats]:
    """Return J over frames, the best of the mean F curve `[..., 255]`, and J over frames with non-empty truth.

    These are the definitions of `fixed`; `official` depends on batches, which `BinaryMetrics` keeps.
    """
    best = ratio(curve.max(axis=-1), sounding)
    return {"miou": ratio(j, frames), "f": best, "miou_sounding": ratio(j_sounding, sounding)}


def class_means(
    protocol: Protocol, iou: Sums, f: Sums, held: Sums, shown: Sums, padded: Sums
) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Return IoU and F per class of AVSS, and the classes that count.

    Args:
        protocol: `official` counts every class and the padded frames.
        iou: sums of the IoU over frames, per class.
        f: sums of F over frames, per class.
        held: frames that hold the class in truth or prediction.
        shown: frames that hold the class in the truth.
        padded: frames that the published loader adds, without the axis of classes.
    """
    iou, f, held = (sums.astype(np.float64) for sums in (iou, f, held))
    counted = shown > 0
    if protocol == "official":
        for sums in (iou, f, held):
            sums[..., 0] += padded  # an empty prediction of an empty frame: the background has IoU and F of 1
        counted = np.ones_like(counted)
    return iou / np.maximum(held, 1), f / np.maximum(held, 1), counted


def semantic_figures(
    protocol: Protocol, iou: Sums, f: Sums, held: Sums, shown: Sums, padded: Sums
) -> dict[str, Floats]:
    """Return the means of AVSS over classes, from the sums of `class_means`.

    The published figures "without background" leave out the last class instead of the first. `official` has them as
    `miou_nobg` and `f_nobg`.
    """
    iou, f, counted = class_means(protocol, iou, f, held, shown, padded)
    figures = {"miou": masked_mean(iou, counted), "f": masked_mean(f, counted)}
    if protocol == "official":
        but_last = counted[..., :-1]
        figures |= {"miou_nobg": masked_mean(iou[..., :-1], but_last), "f_nobg": masked_mean(f[..., :-1], but_last)}
    front = counted[..., 1:]
    return figures | {
        "miou_foreground": masked_mean(iou[..., 1:], front),
        "f_foreground": masked_mean(f[..., 1:], front),
    }


def open_vocabulary_figures(
    protocol: Protocol, hit: Sums, predicted: Sums, true: Sums, base: Sequence[int], novel: Sequence[int]
) -> dict[str, Floats]:
    """Return the mean IoU of all, base and novel classes of AVSBench-OV, and the harmonic mean of the last two.

    IoU is that of pixels counted over all frames together. `official` counts classes in truth or prediction, `fixed`
    those in the truth. The harmonic mean without any base or any novel class is 0 in `official`, as published, and
    undefined in `fixed`.
    """
    union = predicted + true - hit
    iou, counted = hit / np.maximum(union, 1), (union if protocol == "official" else true) > 0
    seen, unseen = (masked_mean(iou[..., list(group)], counted[..., list(group)]) for group in (base, novel))
    harmonic = np.where(seen + unseen == 0, 0.0, ratio(2 * seen * unseen, seen + unseen))
    if protocol == "official":
        harmonic = np.nan_to_num(harmonic, nan=0.0)
    return {"miou": masked_mean(iou, counted), "base": seen, "novel": unseen, "harmonic": harmonic}
