"""Counts of one clip of tracks: matches for HOTA and TrackMAP, and frames that are right (FSLA).

Masks stay run-length codes. Their IoU is computed once per frame, for all pairs of a true and a predicted mask, and
everything else follows from arrays `[T, G, P]` (frames, true tracks, predicted tracks).

Sources: HOTA of Luiten et al. (2021), TrackMAP of TAO and TrackEval, and FSLA of AVIS (Guo et al., 2025) as its
published code computes them. `official` keeps the flaws of that code (see `TrackMetrics`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from openavs.evaluation.datasets.base import InstanceTrack
from openavs.evaluation.metrics.functional import Floats
from openavs.structures.masks import RLE
from openavs.structures.types import BoolMask

ALPHAS: Floats = np.arange(0.05, 0.99, 0.05)
"""IoU thresholds of HOTA and FSLA, `[19]`."""

IOU_THRESHOLDS: Floats = np.arange(0.5, 0.96, 0.05)
"""IoU thresholds of TrackMAP, `[10]`."""

AREA_RANGES = ((0.0, 1e10), (0.0, 128.0**2), (128.0**2, 256.0**2), (256.0**2, 1e10))
"""All tracks, and those of small, medium and large mean area in pixels."""

EMPTY_720P = "PPTl0"  # the code of an empty mask of 720 x 1280, by which the published FSLA recognizes silence
_EPS = np.finfo(float).eps
_ALWAYS, _NEVER = np.inf, -1.0  # the IoU that a frame is compared by if none decides


@dataclass(frozen=True, eq=False)
class TrackOverlap:
    """True and predicted tracks of one clip and the overlap of their masks.

    Attributes:
        truth, predicted: G and P tracks.
        shown, marked: bool `[T, G]` and `[T, P]`, the frames in which a track has a mask.
        true_area, area: pixels `[T, G]` and `[T, P]`.
        iou: `[T, G, P]`, 0 without one of the masks.
    """

    truth: tuple[InstanceTrack, ...]
    predicted: tuple[InstanceTrack, ...]
    shown: BoolMask
    marked: BoolMask
    true_area: Floats
    area: Floats
    iou: Floats

    def take(self, rows: Sequence[int], columns: Sequence[int]) -> TrackOverlap:
        """Return the overlap of some of the tracks, in the given order."""
        g, p = np.asarray(rows, dtype=np.intp), np.asarray(columns, dtype=np.intp)
        return TrackOverlap(
            tuple(self.truth[i] for i in g),
            tuple(self.predicted[i] for i in p),
            *(self.shown[:, g], self.marked[:, p], self.true_area[:, g], self.area[:, p]),
            self.iou[:, g][:, :, p],
        )

    def of_class(self, category: int) -> TrackOverlap:
        """Return the overlap of the tracks of one class."""
        return self.take(_of_class(self.truth, category), _of_class(self.predicted, category))

    def without_empty(self) -> TrackOverlap:
        """Return the overlap without empty masks and tracks, in an order that depends on the masks alone."""
        full = replace(self, shown=self.true_area > 0, marked=self.area > 0)
        return full.take(_ordered(self.truth, full.shown), _ordered(self.predicted, full.marked))


def measure_overlap(truth: Sequence[InstanceTrack], predicted: Sequence[InstanceTrack], frames: int) -> TrackOverlap:
    """Compute the overlap of all tracks of a clip; every track has `frames` entries, of masks of one size."""
    from pycocotools import mask as coco

    shown, marked = _present(truth, frames), _present(predicted, frames)
    true_area, area = np.zeros(shown.shape), np.zeros(marked.shape)
    iou = np.zeros((frames, len(truth), len(predicted)))
    for t in range(frames):
        rows, columns = np.flatnonzero(shown[t]), np.flatnonzero(marked[t])
        true, own = _codes(truth, rows, t), _codes(predicted, columns, t)
        true_area[t, rows], area[t, columns] = coco.area(true), coco.area(own)
        if true and own:
            iou[t, rows[:, None], columns] = coco.iou(true, own, [False] * len(own))
    return TrackOverlap(tuple(truth), tuple(predicted), shown, marked, true_area, area, iou)


def _of_class(tracks: Sequence[InstanceTrack], category: int) -> list[int]:
    return [i for i, track in enumerate(tracks) if track.category == category]


def _present(tracks: Sequence[InstanceTrack], frames: int) -> BoolMask:
    present = [[mask is not None for mask in track.masks] for track in tracks]
    return np.array(present, dtype=np.bool_).reshape(len(tracks), frames).T


def _codes(tracks: Sequence[InstanceTrack], places: npt.NDArray[np.intp], t: int) -> list[dict[str, Any]]:
    masks: list[RLE] = [mask for i in places if (mask := tracks[i].masks[t]) is not None]
    return [{"size": list(mask.size), "counts": mask.counts.encode("ascii")} for mask in masks]


def _ordered(tracks: Sequence[InstanceTrack], present: BoolMask) -> list[int]:
    """The places of the tracks with a mask, by class, score and masks."""

    def key(i: int) -> tuple[int, float, list[str]]:
        masks = zip(tracks[i].masks, present[:, i], strict=True)
        return tracks[i].category, -tracks[i].score, [mask.counts if mask and on else "" for mask, on in masks]

    return sorted((i for i in range(len(tracks)) if present[:, i].any()), key=key)


# ---------------------------------------------------------------------------------------------------------------- HOTA


def align_tracks(clip: TrackOverlap) -> Floats:
    """Return the alignment of all pairs of tracks over the clip, `[G, P]` in [0, 1] (HOTA, its global alignment)."""
    total = clip.iou.sum(axis=2, keepdims=True) + clip.iou.sum(axis=1, keepdims=True) - clip.iou
    shares = np.divide(clip.iou, total, out=np.zeros_like(clip.iou), where=total > _EPS).sum(axis=0)
    frames = clip.shown.sum(axis=0)[:, None] + clip.marked.sum(axis=0)[None, :] - shares
    return np.asarray(np.divide(shares, frames, out=np.zeros_like(shares), where=frames > 0))


def hota_sums(clip: TrackOverlap) -> Floats:
    """Count one class of a clip for HOTA, `[7, 19]`.

    The rows are matches, true and predicted masks, and the sums over matches of the IoU and of the association scores
    A, Re and Pr.
    """
    sums = np.zeros((7, len(ALPHAS)))
    sums[1], sums[2] = clip.shown.sum(), clip.marked.sum()
    if not clip.iou.any():
        return sums
    aligned = align_tracks(clip)
    matches = np.zeros((len(ALPHAS), *aligned.shape))
    for iou, shown, marked in zip(clip.iou, clip.shown, clip.marked, strict=True):
        g, p = np.flatnonzero(shown), np.flatnonzero(marked)
        if not (len(g) and len(p)):
            continue
        rows, columns = linear_sum_assignment((aligned * iou)[np.ix_(g, p)], maximize=True)
        rows, columns = g[rows], p[columns]
        hit = iou[rows, columns] >= ALPHAS[:, None] - _EPS
        matches[:, rows, columns] += hit
        sums[3] += hit @ iou[rows, columns]
    lengths, own = clip.shown.sum(axis=0)[:, None], clip.marked.sum(axis=0)[None, :]
    sums[0] = matches.sum(axis=(1, 2))
    for row, whole in ((4, lengths + own - matches), (5, lengths), (6, own)):
        sums[row] = (matches * matches / np.maximum(whole, 1)).sum(axis=(1, 2))
    return sums


# ------------------------------------------------------------------------------------------------------------ TrackMAP


@dataclass(frozen=True, eq=False)
class TrackMatches:
    """The predicted tracks of one class of a clip, best first, for each range of area and threshold of IoU.

    Attributes:
        scores: `[P]`.
        hit, left_out: bool `[4, 10, P]`: matched with a true track, and not counted.
        count: number of true tracks of each range, `[4]`.
    """

    scores: Floats
    hit: BoolMask
    left_out: BoolMask
    count: Floats


def match_tracks(clip: TrackOverlap, reusable: int | None = None) -> TrackMatches:
    """Match the tracks of one class of a clip as TrackMAP does: by score, each with the best free true track.

    Args:
        clip: the tracks of the class.
        reusable: the place of a predicted track that leaves its true track free for others, as the first track of all
            does in the published code, where its number 0 means "no match".
    """
    order = np.argsort([-track.score for track in clip.predicted], kind="stable")
    iou = _track_ious(clip)[:, order]
    shape = (len(AREA_RANGES), len(IOU_THRESHOLDS), len(order))
    hit, left_out = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    count = np.zeros(len(AREA_RANGES))
    crowd = np.array([track.crowd for track in clip.truth], dtype=np.bool_)
    true_area = np.array([track.mean_area for track in clip.truth])
    area = np.array([_mean_area(clip.area[:, p]) for p in order])
    for i, (low, high) in enumerate(AREA_RANGES):
        ignored = ~((low - _EPS <= true_area) & (true_area <= high + _EPS)) | crowd
        outside = ~((low - _EPS <= area) & (area <= high + _EPS))
        rows = np.argsort(ignored, kind="stable")
        count[i] = np.count_nonzero(~ignored)
        for k, threshold in enumerate(IOU_THRESHOLDS):
            hit[i, k], on_ignored = _assign(iou[rows], ignored[rows], threshold, order, reusable)
            left_out[i, k] = on_ignored | (~hit[i, k] & outside)
    return TrackMatches(np.array([clip.predicted[p].score for p in order]), hit, left_out, count)


def _track_ious(clip: TrackOverlap) -> Floats:
    """IoU of tracks over all frames, `[G, P]`; the intersections of masks follow from IoU and areas exactly."""
    both = clip.true_area[:, :, None] + clip.area[:, None, :]
    overlap = np.rint(clip.iou * both / (1 + clip.iou))
    inter, union = overlap.sum(axis=0), (both - overlap).sum(axis=0)
    return np.asarray(np.divide(inter, union, out=np.zeros_like(inter), where=union > 0))


def _mean_area(pixels: Floats) -> float:
    return float(pixels[pixels > 0].mean()) if pixels.any() else 0.0


def _assign(
    iou: Floats, ignored: BoolMask, threshold: float, order: npt.NDArray[np.intp], reusable: int | None
) -> tuple[BoolMask, BoolMask]:
    """Return the predicted tracks that have a match, and those that match an ignored track; those come last in rows."""
    hit, on_ignored = np.zeros(iou.shape[1], dtype=np.bool_), np.zeros(iou.shape[1], dtype=np.bool_)
    free = np.ones(len(iou), dtype=np.bool_)
    for p in np.flatnonzero((iou >= threshold - _EPS).any(axis=0)):
        best, chosen = min(threshold, 1 - 1e-10), -1
        for g in np.flatnonzero(free).tolist():
            if chosen >= 0 and ignored[g] and not ignored[chosen]:
                break
            if iou[g, p] >= best - _EPS:
                best, chosen = iou[g, p], g
        if chosen >= 0:
            hit[p], on_ignored[p] = True, ignored[chosen]
            free[chosen] = order[p] == reusable
    return hit, on_ignored


# ---------------------------------------------------------------------------------------------------------------- FSLA


def fsla_sums(clip: TrackOverlap) -> Floats:
    """Count the frames of a clip, and the right ones at every threshold, `[3, 20]`.

    The rows are frames with no, one and more true masks; the first column is their number. Tracks are matched class by
    class over the clip. A frame is right if as many masks are predicted as there are true ones, and the match of each
    true mask has an IoU above the threshold.
    """
    partner = np.full(len(clip.truth), -1, dtype=np.intp)
    for category in {track.category for track in clip.truth}:
        true, own = _of_class(clip.truth, category), _of_class(clip.predicted, category)
        for row, column in zip(*linear_sum_assignment(align_tracks(clip.take(true, own)), maximize=True), strict=True):
            partner[true[row]] = own[column]
    value = np.full(clip.shown.shape, _NEVER)
    for g in np.flatnonzero(partner >= 0):
        value[:, g] = np.where(clip.marked[:, partner[g]], clip.iou[:, g, partner[g]], _NEVER)
    least = np.where(clip.shown, value, _ALWAYS).min(axis=1, initial=_ALWAYS)
    right = clip.shown.sum(axis=1) == clip.marked.sum(axis=1)
    return _count_frames(clip, np.where(right, least, _NEVER))


def published_fsla_sums(clip: TrackOverlap) -> Floats | None:
    """Count frames as `fsla_sums` does, by the published code; None where that ends in an IndexError.

    That code matches tracks of all classes, and then mixes three numberings of tracks: their places in the file, among
    the tracks with a mask, and among the masks of a frame. They agree if every track has a mask in every frame.
    """
    numbers = sorted(np.flatnonzero(clip.shown.any(axis=0)), key=lambda g: clip.truth[g].id)
    aligned = align_tracks(clip)[np.ix_(numbers, np.flatnonzero(clip.marked.any(axis=0)))]
    pairs = list(zip(*linear_sum_assignment(aligned, maximize=True), strict=True))
    try:
        return _count_frames(clip, np.array([_published_value(clip, t, pairs) for t in range(len(clip.shown))]))
    except IndexError:
        return None


def _published_value(clip: TrackOverlap, t: int, pairs: Sequence[tuple[int, int]]) -> float:
    """The IoU that a frame is compared by: the least of its pairs."""
    shown, marked = np.flatnonzero(clip.shown[t]).tolist(), np.flatnonzero(clip.marked[t]).tolist()
    codes = [mask.counts if (mask := clip.predicted[p].masks[t]) else "" for p in marked]
    classes = {clip.truth[g].category for g in shown}
    if classes != {clip.predicted[p].category for p in marked}:
        return _NEVER
    if len(shown) != sum(code != EMPTY_720P for code in codes):
        return _NEVER
    if not shown:
        return _ALWAYS
    if len(shown) == 1:
        place = next((i for i, (_, column) in enumerate(pairs) if column == shown[0]), None)
        return _NEVER if place is None else float(clip.iou[t, shown[0], marked[place]])
    return min((_published_pair(clip, t, row, marked[column], codes[column]) for row, column in pairs), default=_ALWAYS)


def _published_pair(clip: TrackOverlap, t: int, g: int, p: int, code: str) -> float:
    if clip.truth[g].category != clip.predicted[p].category:
        return _NEVER
    if not clip.shown[t, g]:
        return _ALWAYS if code == EMPTY_720P else _NEVER
    return float(clip.iou[t, g, p])


def _count_frames(clip: TrackOverlap, value: Floats) -> Floats:
    kind = np.minimum(clip.shown.sum(axis=1), 2)
    right = np.concatenate([np.ones((len(value), 1)), value[:, None] > ALPHAS], axis=1)
    return np.stack([right[kind == i].sum(axis=0) for i in range(3)])
