"""Objects over time: one-to-one matching with the segments of a frame, and links of a clip's segments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from openavs.structures.masks import RLE, rle_iou
from openavs.structures.types import Segment

IouMatrix = npt.NDArray[np.float64]  # [objects, segments], each in [0, 1]

MIN_IOU = 0.2
"""Least IoU of the masks of one object, without a tracker."""

MEMORY = 3.0
"""Seconds that an object may be missed and still be the same, without a tracker."""


def match_objects(
    iou: IouMatrix, min_iou: float | IouMatrix, bonus: float | npt.NDArray[np.floating] = 0.0
) -> list[int | None]:
    """Assign each segment to at most one object, and each object to at most one segment.

    The assignment maximizes the sum of IoU and bonus (Hungarian method) over the pairs that are allowed.

    Args:
        iou: of the last masks of the objects with the segments, `[objects, segments]`.
        min_iou: least IoU of a pair, above 0; one for all or one for each pair.
        bonus: added to the IoU of a pair that is allowed; one for all or one for each pair.

    Returns:
        For each segment the index of its object, or None for a new object.
    """
    from scipy.optimize import linear_sum_assignment

    gain = np.where(iou >= min_iou, iou + bonus, 0.0)
    matches: list[int | None] = [None] * iou.shape[1]
    for row, column in zip(*linear_sum_assignment(gain, maximize=True), strict=True):
        if gain[row, column] > 0:
            matches[column] = int(row)
    return matches


@dataclass(eq=False)
class _Known:
    """An object without a track: the frame that it was seen in last, and its phrases so far."""

    time: float
    mask: RLE
    phrases: set[str] = field(default_factory=set)


class ObjectLinker:
    """Links the segments of a clip to objects, frame by frame, in order of time.

    Segments of one phrase and one track are one object. Without a tracker, segments are matched one to one with the
    objects that were seen in the last `MEMORY` seconds, by the IoU of their masks; those that overlap by less than
    `MIN_IOU` start a new object.

    Args:
        renamed: whether a segment of a phrase can be an object that had some other phrases so far; objects that had the
            phrase come first. Without it, an object has one phrase.
    """

    def __init__(self, renamed: Callable[[str, Collection[str]], bool] | None = None) -> None:
        self._renamed = renamed
        self._bonus = 0.0 if renamed is None else 1.0
        self._tracks: dict[tuple[str, int], int] = {}
        self._known: dict[int, _Known] = {}
        self._count = 0

    def link(self, time: float, segments: Sequence[Segment]) -> list[int]:
        """Return the number of each segment's object, from 0 in order of appearance; numbers of a frame differ.

        Args:
            time: of the frame, in seconds; not before that of the last call.
            segments: the frame's segments.
        """
        self._known = {number: known for number, known in self._known.items() if time - known.time <= MEMORY}
        loose = iter(self._match([segment for segment in segments if segment.track is None]))
        found = []
        for segment in segments:
            if segment.track is not None:
                number = self._tracks.setdefault((segment.phrase, segment.track), self._count)
            else:
                match = next(loose)
                number = self._count if match is None else match
                known = self._known.setdefault(number, _Known(time, segment.mask))
                known.time, known.mask = time, segment.mask
                known.phrases.add(segment.phrase)
            self._count = max(self._count, number + 1)
            found.append(number)
        return found

    def _match(self, segments: Sequence[Segment]) -> list[int | None]:
        """Return the number of the known object that each segment is; None for a new one."""
        numbers, known = list(self._known), list(self._known.values())

        def pairs(test: Callable[[str, Collection[str]], bool]) -> npt.NDArray[np.bool_]:
            table = [[test(segment.phrase, one.phrases) for segment in segments] for one in known]
            return np.array(table, dtype=np.bool_).reshape(len(known), len(segments))

        same = allowed = pairs(lambda phrase, phrases: phrase in phrases)
        if self._renamed is not None:
            allowed = same | pairs(self._renamed)
        iou = np.where(allowed, rle_iou([one.mask for one in known], [s.mask for s in segments]), 0.0)
        return [None if row is None else numbers[row] for row in match_objects(iou, MIN_IOU, same * self._bonus)]
