"""Who is who from frame to frame: key frames, overlaps, and the matching of what is known with what is found.

Pure functions of masks and numbers; no model is needed. The trackers (`segmenters/iou_tracker.py`,
`segmenters/sam2_video.py` through `following.py`) all give out identities by `assign`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from openavs.types import RLE, Box, Dropped, Segment

Overlap = npt.NDArray[np.float64]  # [known, found], each in [0, 1]

RENAMED = 0.8
"""From this overlap on a thing is the same although it is asked for by another name; boxes count as one from here."""

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


def mask_overlap(known: Sequence[RLE], found: Sequence[RLE]) -> Overlap:
    """Intersection over union of every known with every found mask, `[known, found]`; 0 where both are empty."""
    from pycocotools import mask as coco

    if not known or not found:
        return np.zeros((len(known), len(found)))
    crowd = [0] * len(known)
    ious = coco.iou([_coco(m) for m in found], [_coco(m) for m in known], crowd)
    return np.nan_to_num(np.asarray(ious, dtype=np.float64).T.reshape(len(known), len(found)))


def assign(overlap: Overlap, same_phrase: npt.NDArray[np.bool_], least: float) -> list[int | None]:
    """Which known thing each find is; None for a new one. No two finds are the same thing.

    Things of one phrase are matched first, so that the sum of their overlaps is greatest (Hungarian method) and none is
    below `least`. What is left over may then be the same thing under another name, from an overlap of `RENAMED` on.

    Args:
        overlap: `[known, found]`, in [0, 1].
        same_phrase: whether a known thing has been found by the find's phrase before, `[known, found]`.
    """
    answer: list[int | None] = [None] * overlap.shape[1]
    for row, column in _pairs(np.where(same_phrase & (overlap >= least), overlap, 0.0)):
        answer[column] = row
    left = np.where(overlap >= max(RENAMED, least), overlap, 0.0)
    left[[row for row in answer if row is not None], :] = 0.0
    left[:, [column for column, row in enumerate(answer) if row is not None]] = 0.0
    for row, column in _pairs(left):
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


def still_dropped(dropped: Iterable[Dropped], segments: Iterable[Segment]) -> tuple[Dropped, ...]:
    """What stays dropped when a tracker knows better: a phrase that it still sees was not missed."""
    seen = {segment.phrase for segment in segments}
    return tuple(drop for drop in dropped if drop.phrase not in seen or drop.reason not in _UNSEEN)


def _coco(mask: RLE) -> dict[str, object]:
    return {"size": list(mask.size), "counts": mask.counts.encode("ascii")}
