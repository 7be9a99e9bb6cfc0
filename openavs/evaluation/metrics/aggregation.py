"""Figures of sums over clips, by the definitions of the two protocols (`metrics.py` says how they differ).

Every argument is an array of sums, `[...]` or per class `[..., classes]`: one row for a whole split, or one for every
resample of a bootstrap. What is undefined is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.evaluation.metrics.counting import Floats

Protocol = Literal["official", "fixed"]
Figures = dict[str, float | None]
"""Figures by name, None where undefined."""

Sums = npt.NDArray[Any]


def ratio(top: Sums, bottom: Sums) -> Floats:
    """Quotients, NaN where the bottom is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64))
    quotients = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=quotients, where=bottom > 0)
    return quotients


def mean_of(values: Sums, counted: Sums) -> Floats:
    """The mean over the last axis of what is counted, NaN where nothing is."""
    return ratio(np.where(counted, values, 0.0).sum(axis=-1), counted.sum(axis=-1))


def plain(figures: dict[str, Floats]) -> Figures:
    """Figures of one row as plain numbers."""
    return {name: None if np.isnan(value) else float(value) for name, value in figures.items()}


def check_protocol(protocol: str, frames: int) -> None:
    """Refuses another word than the two protocols, and an empty split."""
    if protocol not in ("official", "fixed"):
        raise InputError(f"the protocol is 'official' or 'fixed', not {protocol!r}")
    if not frames:
        raise InputError("there is nothing to score: no clip was added")


def binary_figures(j: Sums, frames: Sums, j_sounding: Sums, sounding: Sums, curve: Sums) -> dict[str, Floats]:
    """`fixed`: J over frames, the best of the mean F curve `[..., 255]`, J over frames with non-empty truth."""
    best = ratio(curve.max(axis=-1), sounding)
    return {"miou": ratio(j, frames), "f": best, "miou_sounding": ratio(j_sounding, sounding)}


def class_means(
    protocol: Protocol, iou: Sums, f: Sums, held: Sums, shown: Sums, padded: Sums
) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """AVSS: IoU and F per class and which classes count; `held` and `shown` are frames, `padded` the empty ones."""
    iou, f, held = (sums.astype(np.float64) for sums in (iou, f, held))
    counted = shown > 0
    if protocol == "official":
        for sums in (iou, f, held):
            sums[..., 0] += padded  # an empty frame on an empty frame: IoU and F of the background are 1
        counted = np.ones_like(counted)
    return iou / np.maximum(held, 1), f / np.maximum(held, 1), counted


def semantic_figures(
    protocol: Protocol, iou: Sums, f: Sums, held: Sums, shown: Sums, padded: Sums
) -> dict[str, Floats]:
    """AVSS: the means over classes, with the published one "without background" in `official`."""
    iou, f, counted = class_means(protocol, iou, f, held, shown, padded)
    figures = {"miou": mean_of(iou, counted), "f": mean_of(f, counted)}
    if protocol == "official":
        but_last = counted[..., :-1]
        figures |= {"miou_nobg": mean_of(iou[..., :-1], but_last), "f_nobg": mean_of(f[..., :-1], but_last)}
    front = counted[..., 1:]
    return figures | {
        "miou_foreground": mean_of(iou[..., 1:], front),
        "f_foreground": mean_of(f[..., 1:], front),
    }


def area_iou(protocol: Protocol, hit: Sums, predicted: Sums, true: Sums) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """AVSBench-OV: IoU per class of pixels counted together, and which classes count."""
    union = predicted + true - hit
    return hit / np.maximum(union, 1), (union if protocol == "official" else true) > 0


def open_vocabulary_figures(
    protocol: Protocol, hit: Sums, predicted: Sums, true: Sums, base: Sequence[int], novel: Sequence[int]
) -> dict[str, Floats]:
    """AVSBench-OV: the mean IoU of all, base and novel classes, and the harmonic mean of the last two.

    Where no base or no novel class counts the harmonic mean is 0 in `official`, as published, and undefined in `fixed`.
    """
    iou, counted = area_iou(protocol, hit, predicted, true)
    seen, unseen = (mean_of(iou[..., list(group)], counted[..., list(group)]) for group in (base, novel))
    harmonic = np.where(seen + unseen == 0, 0.0, ratio(2 * seen * unseen, seen + unseen))
    if protocol == "official":
        harmonic = np.nan_to_num(harmonic, nan=0.0)
    return {"miou": mean_of(iou, counted), "base": seen, "novel": unseen, "harmonic": harmonic}
