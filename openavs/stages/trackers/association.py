"""Association of segments with tracks: key frames, mask IoU and one-to-one matching.

Pure functions of masks and numbers, shared by all trackers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from openavs.structures.masks import RLE
from openavs.structures.types import Box, Rejection, Segment

IouMatrix = npt.NDArray[np.float64]  # [tracks, segments], each in [0, 1]

CROSS_PHRASE_MIN_IOU = 0.5
"""Minimum IoU of a track and a segment with different phrases."""

SAME_PHRASE_BONUS = 0.25
"""Added to the IoU of a track and a segment with the same phrase. Small: detectors confuse phrases, too."""

_NOT_DETECTED = ("not found", "unknown word", "below threshold")


def key_frames(phrases: Sequence[Collection[str]], interval: int) -> frozenset[int]:
    """Select key frames: indices into `phrases`, the phrases that sound at each frame of a clip.

    The first frame of every run of frames with equal phrases is one (so wherever the prompts change, and after every
    silence), and every `interval`-th frame of the run after it. Frames without phrases are skipped.
    """
    keys = []
    since = 0
    for i, current in enumerate(phrases):
        if not current:
            continue
        changed = i == 0 or set(phrases[i - 1]) != set(current)
        since = 0 if changed else since + 1
        if since % interval == 0:
            keys.append(i)
    return frozenset(keys)


def match_tracks(iou: IouMatrix, same_phrase: npt.NDArray[np.bool_], min_iou: float) -> list[int | None]:
    """Assign each segment to at most one track, and each track to at most one segment.

    The assignment maximizes the sum of IoU (Hungarian method), with `SAME_PHRASE_BONUS` added for tracks that had the
    segment's phrase before. Such a pair needs an IoU of `min_iou`, any other also one of `CROSS_PHRASE_MIN_IOU`.

    Args:
        iou: `[tracks, segments]`, in [0, 1].
        same_phrase: whether a track had the segment's phrase before, `[tracks, segments]`.
        min_iou: minimum IoU of a pair.

    Returns:
        For each segment the index of its track, or None for a new object.
    """
    from scipy.optimize import linear_sum_assignment

    allowed = iou >= np.where(same_phrase, min_iou, max(CROSS_PHRASE_MIN_IOU, min_iou))
    gain = np.where(allowed, iou + SAME_PHRASE_BONUS * same_phrase, 0.0)
    matches: list[int | None] = [None] * iou.shape[1]
    for row, column in zip(*linear_sum_assignment(gain, maximize=True), strict=True):
        if gain[row, column] > 0:
            matches[column] = int(row)
    return matches


def mask_box(mask: RLE) -> Box:
    """Compute the smallest box around a mask; all zeros for an empty mask."""
    from pycocotools import mask as coco

    x, y, width, height = (float(v) for v in coco.toBbox(_coco_rle(mask)))
    return (x, y, x + width, y + height)


def remaining_rejections(rejected: Iterable[Rejection], segments: Iterable[Segment]) -> tuple[Rejection, ...]:
    """Remove the rejections of phrases that the detector missed and the tracker still follows."""
    tracked = {segment.phrase for segment in segments}
    return tuple(r for r in rejected if r.phrase not in tracked or r.reason not in _NOT_DETECTED)


def _coco_rle(mask: RLE) -> dict[str, object]:
    return {"size": list(mask.size), "counts": mask.counts.encode("ascii")}
