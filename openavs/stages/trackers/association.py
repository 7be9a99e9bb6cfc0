"""Who is who from frame to frame: key frames, overlaps, and the matching of what is known with what is found.

Pure functions of masks and numbers; no model is needed. The trackers (`iou.py`,
`sam2_video.py` through `propagation.py`) all give out identities by `assign`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from openavs.structures.types import RLE, Box, Rejection, Segment

Overlap = npt.NDArray[np.float64]  # [known, found], each in [0, 1]

CROSS_PHRASE_MIN_IOU = 0.5
"""From this overlap on a thing may be the same although it was found by another phrase."""

SAME_PHRASE_BONUS = 0.25
"""What it is worth, in overlap, that a thing was found by the same phrase before: detectors mix phrases up, too."""

_UNSEEN = ("not found", "below threshold")


def key_frames(asked: Sequence[Collection[str]], every: int) -> frozenset[int]:
    """The frames to be looked at anew: indices into `asked`, the phrases that sound at each frame of a clip.

    These are the first frame of every run of frames at which the same things sound (so wherever the prompts change, and
    after every silence), and each `every`-th from there on.
    """
    keys = []
    since = 0
    for i, phrases in enumerate(asked):
        if not phrases:
            continue
        changed = i == 0 or set(asked[i - 1]) != set(phrases)
        since = 0 if changed else since + 1
        if since % every == 0:
            keys.append(i)
    return frozenset(keys)


def mask_iou(known: Sequence[RLE], found: Sequence[RLE]) -> Overlap:
    """Intersection over union of every known with every found mask, `[known, found]`; 0 where both are empty."""
    from pycocotools import mask as coco

    if not known or not found:
        return np.zeros((len(known), len(found)))
    crowd = [0] * len(known)
    ious = coco.iou([_coco(m) for m in found], [_coco(m) for m in known], crowd)
    return np.nan_to_num(np.asarray(ious, dtype=np.float64).T.reshape(len(known), len(found)))


def match_tracks(overlap: Overlap, same_phrase: npt.NDArray[np.bool_], least: float) -> list[int | None]:
    """Which known thing each find is; None for a new one. No two finds are the same thing.

    The pairs are those with the greatest sum of overlaps (Hungarian method), `FAMILIAR` added for things that were
    found by the find's phrase before. Such a pair needs an overlap of `least`, any other also one of `RENAMED`.

    Args:
        overlap: `[known, found]`, in [0, 1].
        same_phrase: whether a known thing has been found by the find's phrase before, `[known, found]`.
    """
    allowed = overlap >= np.where(same_phrase, least, max(CROSS_PHRASE_MIN_IOU, least))
    answer: list[int | None] = [None] * overlap.shape[1]
    for row, column in _pairs(np.where(allowed, overlap + SAME_PHRASE_BONUS * same_phrase, 0.0)):
        answer[column] = row
    return answer


def _pairs(gain: Overlap) -> list[tuple[int, int]]:
    """The one-to-one pairs of rows and columns with the greatest sum; pairs that gain nothing are left out."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if gain[r, c] > 0]


def mask_box(mask: RLE) -> Box:
    """The smallest box around a mask; all zeros for an empty one."""
    from pycocotools import mask as coco

    x, y, width, height = (float(v) for v in coco.toBbox(_coco(mask)))
    return (x, y, x + width, y + height)


def remaining_rejections(dropped: Iterable[Rejection], segments: Iterable[Segment]) -> tuple[Rejection, ...]:
    """What stays dropped when a tracker knows better: a phrase that it still sees was not missed."""
    seen = {segment.phrase for segment in segments}
    return tuple(drop for drop in dropped if drop.phrase not in seen or drop.reason not in _UNSEEN)


def _coco(mask: RLE) -> dict[str, object]:
    return {"size": list(mask.size), "counts": mask.counts.encode("ascii")}
