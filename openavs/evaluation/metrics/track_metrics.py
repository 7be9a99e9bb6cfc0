"""Figures of tracks over a split: mAP, HOTA with its parts, and FSLA, in both protocols.

`official` equals the published code of AVIS (CVPR 2025), including its flaws:

- HOTA and TrackMAP: an empty mask is a detection, and a track of empty masks a false positive. A true track without any
  mask is a miss.
- HOTA: the mean is over all classes; one that no clip holds counts 0 (its LocA 1).
- TrackMAP: the very first track of the predictions has the number 0, which means "no match", so that its true track can
  be matched again.
- FSLA: tracks are looked up by their places in the file, so figures depend on the order of tracks. Silent tracks add
  their class to the classes of a frame. Silence is recognized by the code of an empty mask of 720 x 1280. Some
  predictions without a mask (null) end in an IndexError; FSLA is undefined then.

`fixed` leaves out empty masks and tracks without any, and classes that no truth holds; the order of tracks changes
nothing, and predictions equal to the truth score 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt

from openavs.evaluation.datasets.base import InstanceTrack
from openavs.evaluation.metrics.bootstrap import BootstrapSample
from openavs.evaluation.metrics.functional import (
    Figures,
    Floats,
    Protocol,
    check_protocol,
    masked_mean,
    ratio,
    to_figures,
    to_number,
)
from openavs.evaluation.metrics.metrics import Row
from openavs.evaluation.metrics.tracks import (
    ALPHAS,
    AREA_RANGES,
    IOU_THRESHOLDS,
    TrackMatches,
    TrackOverlap,
    fsla_sums,
    hota_sums,
    match_tracks,
    measure_overlap,
    published_fsla_sums,
)

RECALLS: Floats = np.linspace(0.0, 1.0, 101)
"""Recalls at which TrackMAP takes the precision."""

_PARTS = ("hota", "det_a", "det_re", "det_pr", "ass_a", "ass_re", "ass_pr", "loc_a")
_RANGES = ("map", "map_small", "map_medium", "map_large")
_FRAMES = ("fsla", "fsla_n", "fsla_s", "fsla_m")


class TrackMetrics:
    """Accumulates the clips of a split; their order is that of the published code, by name.

    Args:
        classes: the class names, the background first.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self.frames = 0
        self.failed = 0  # clips for which the published FSLA ends in an IndexError
        self._counts = {protocol: _Counts(len(classes) - 1) for protocol in get_args(Protocol)}
        self._shown: list[npt.NDArray[np.int64]] = []  # per clip, the frames that show each class

    def update(self, truth: Sequence[InstanceTrack], predicted: Sequence[InstanceTrack], frames: int) -> float:
        """Add one clip and return its share of right frames (FSLA, `fixed`).

        Args:
            truth: the true tracks in the order of their file.
            predicted: the predicted tracks in the order of their file.
            frames: the number of frames, which is that of the masks of every track.
        """
        clip = measure_overlap(truth, predicted, frames)
        fixed, official = self._counts["fixed"], self._counts["official"]
        first = predicted[0] if predicted and not official.tracks else None
        official.add(clip, published_fsla_sums(clip), first)
        self.failed += official.fsla[-1] is None
        full = clip.without_empty()
        sums = fsla_sums(full)
        fixed.add(full, sums, None)
        own = [
            full.shown[:, [i for i, t in enumerate(full.truth) if t.category == c]] for c in range(1, len(self.classes))
        ]
        self._shown.append(np.array([shown.any(axis=1).sum() for shown in own]))
        self.frames += frames
        return float(sums[:, 1:].sum() / (frames * len(ALPHAS)))

    def compute(self, protocol: Protocol) -> Figures:
        """Return the figures of all clips, shares in [0, 1].

        Raises:
            InputError: an unknown protocol, or no clip was added.
        """
        check_protocol(protocol, self.frames)
        counts = self._counts[protocol]
        weights = np.ones((1, len(self._shown)))
        found = [counts.average_precision(weights, place) for place in range(len(AREA_RANGES))]
        figures = {name: _class_mean(precision) for name, (precision, _) in zip(_RANGES, found, strict=True)}
        figures["ar"] = _class_mean(found[0][1])
        figures |= self._hota(protocol, weights) | counts.frame_figures(weights)
        return to_figures({name: values[0] for name, values in figures.items()})

    def sample(self, protocol: Protocol) -> BootstrapSample:
        """Return mAP, HOTA with its parts and FSLA of weighted clips."""
        counts = self._counts[protocol]

        def figures(weights: Floats) -> dict[str, Floats]:
            found = {"map": _class_mean(counts.average_precision(weights, 0)[0])}
            return found | self._hota(protocol, weights) | counts.frame_figures(weights)

        return BootstrapSample(len(self._shown), figures)

    def per_class(self) -> list[Row]:
        """Return one row per class: clips and frames that show it, `hota` and `map`, by `fixed`."""
        counts, weights = self._counts["fixed"], np.ones((1, len(self._shown)))
        shown = np.array(self._shown)
        scores, held = counts.hota(weights)
        precision = counts.average_precision(weights, 0)[0][0]
        return [
            {"name": name, "clips": int(np.count_nonzero(shown[:, c])), "frames": int(shown[:, c].sum())}
            | {"hota": float(scores[0, 0, c]) if held[0, c] else None, "map": to_number(precision[c])}
            for c, name in enumerate(self.classes[1:])
        ]

    def curve(self) -> dict[str, list[float]] | None:
        """Return HOTA, DetA and AssA by `fixed` at every `threshold` of IoU; None without a true mask."""
        parts, held = self._counts["fixed"].hota_by_threshold(np.ones((1, len(self._shown))))
        if not held.any():
            return None
        means = dict(zip(_PARTS, parts[:, 0, held[0]].mean(axis=1), strict=True))
        return {"threshold": list(ALPHAS)} | {name: means[name].tolist() for name in ("hota", "det_a", "ass_a")}

    def _hota(self, protocol: Protocol, weights: Floats) -> dict[str, Floats]:
        scores, held = self._counts[protocol].hota(weights)
        counted = held if protocol == "fixed" else np.ones_like(held)
        return {name: masked_mean(scores[i], counted) for i, name in enumerate(_PARTS)}


class _Counts:
    """Counts of the clips by one protocol."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.tracks = 0
        self.fsla: list[Floats | None] = []
        self._hota: list[Floats] = []  # per clip `[C, 7, 19]`
        self._matches: list[list[tuple[int, TrackMatches]]] = [[] for _ in range(classes)]  # per class: clip, matches

    def add(self, clip: TrackOverlap, fsla: Floats | None, first: InstanceTrack | None) -> None:
        """Add a clip; `first` is the very first track of the predictions, if it is in this clip."""
        sums = np.zeros((self.classes, 7, len(ALPHAS)))
        for category in {track.category for track in (*clip.truth, *clip.predicted)}:
            own = clip.of_class(category)
            sums[category - 1] = hota_sums(own)
            reusable = next((p for p, track in enumerate(own.predicted) if track is first), None)
            self._matches[category - 1].append((len(self._hota), match_tracks(own, reusable)))
        self._hota.append(sums)
        self.fsla.append(fsla)
        self.tracks += len(clip.predicted)

    def hota(self, weights: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return HOTA and its parts per class, `[8, R, C]`, and the classes with a true mask, `[R, C]`."""
        parts, held = self.hota_by_threshold(weights)
        return parts.mean(axis=-1), held

    def hota_by_threshold(self, weights: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return the same at every threshold of IoU, `[8, R, C, 19]`, and the classes with a true mask, `[R, C]`."""
        stacked = np.stack(self._hota)
        sums = (weights @ stacked.reshape(len(stacked), -1)).reshape(len(weights), *stacked.shape[1:])
        hit, true, own, iou, a, re, pr = np.moveaxis(sums, 2, 0)
        det = [hit / np.maximum(total, 1) for total in (true + own - hit, true, own)]
        ass = [total / np.maximum(hit, 1) for total in (a, re, pr)]
        located = np.maximum(iou, 1e-10) / np.maximum(hit, 1e-10)
        parts = np.stack([np.sqrt(det[0] * ass[0]), *det, *ass, located])
        return parts, true[..., 0] > 0

    def average_precision(self, weights: Floats, place: int) -> tuple[Floats, Floats]:
        """Return AP and recall of TrackMAP per class `[R, C]` in one range of area; NaN without a true track."""
        precision, recall = np.full((2, len(weights), self.classes), np.nan)
        for c, matches in enumerate(self._matches):
            if not matches:
                continue
            clips = np.array([clip for clip, _ in matches])
            count = weights[:, clips] @ np.array([own.count[place] for _, own in matches])
            scores = np.concatenate([own.scores for _, own in matches])
            order = np.argsort(-scores, kind="stable")
            repeated = weights[:, np.repeat(clips, [len(own.scores) for _, own in matches])[order]]
            hit = np.concatenate([own.hit[place] for _, own in matches], axis=1)[:, order]
            counted = ~np.concatenate([own.left_out[place] for _, own in matches], axis=1)[:, order]
            held = count > 0
            curves = [
                _precision_and_recall(repeated[held], hit[k], counted[k], count[held])
                for k in range(len(IOU_THRESHOLDS))
            ]
            precision[held, c], recall[held, c] = np.mean(curves, axis=0)
        return precision, recall

    def frame_figures(self, weights: Floats) -> dict[str, Floats]:
        """Return FSLA, and that of frames with no, one and more true masks; NaN where it is undefined."""
        sums = np.array([own for own in self.fsla if own is not None])
        if len(sums) < len(self.fsla):
            return {name: np.full(len(weights), np.nan) for name in _FRAMES}
        sums = (weights @ sums.reshape(len(sums), -1)).reshape(len(weights), 3, -1)
        frames, right = sums[:, :, 0], sums[:, :, 1:].mean(axis=2)
        kinds = ratio(right, frames)
        return dict(zip(_FRAMES, (ratio(right.sum(axis=1), frames.sum(axis=1)), *kinds.T), strict=True))


def _precision_and_recall(
    weights: Floats, hit: npt.NDArray[np.bool_], counted: npt.NDArray[np.bool_], count: Floats
) -> tuple[Floats, Floats]:
    """Return the mean precision at 101 recalls and the recall, `[R]`, of weighted tracks `[R, N]`, best first."""
    if not len(hit):
        return np.zeros(len(weights)), np.zeros(len(weights))
    true = (weights * (hit & counted)).cumsum(axis=1)
    total = (weights * counted).cumsum(axis=1)
    precision = np.divide(true, total, out=np.zeros_like(true), where=total > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]  # of all that reach this recall
    recall = true / count[:, None]
    reached = np.searchsorted(RECALLS, recall, side="right")
    steps = np.diff(reached, axis=1, prepend=0)
    return (precision * steps).sum(axis=1) / len(RECALLS), recall[:, -1]


def _class_mean(values: Floats) -> Floats:
    """The mean over the classes with a value, NaN without any."""
    return masked_mean(values, ~np.isnan(values))
