"""Objects over time: which segments of a clip are the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from openavs.structures.masks import mask_iou
from openavs.structures.types import BoolMask, Segment

MIN_IOU = 0.2
"""Least IoU of the masks of one phrase that are the same object, without a tracker."""

MEMORY = 3.0
"""Seconds that an object may be missed and still be the same, without a tracker."""


@dataclass(frozen=True, eq=False)
class _Sighting:
    """The last frame that an object was seen in."""

    time: float
    phrase: str
    mask: BoolMask


class ObjectLinker:
    """Links the segments of a clip to objects, frame by frame, in order of time.

    Segments of one track are one object. Without a tracker, the segments of a phrase are matched one to one with the
    objects of this phrase that were seen last, so that the sum of the mask IoUs is largest (Hungarian method); those
    that overlap by less than `MIN_IOU` start a new object. An object may be missed for up to `MEMORY` seconds.
    """

    def __init__(self) -> None:
        self._tracks: dict[tuple[str, int], int] = {}
        self._seen: dict[int, _Sighting] = {}
        self._count = 0

    def link(self, time: float, segments: Sequence[Segment], masks: Sequence[BoolMask]) -> list[int]:
        """Return the number of each segment's object, from 0 in order of appearance; numbers of a frame differ.

        Args:
            time: of the frame, in seconds; not before that of the last call.
            segments: the frame's segments.
            masks: their masks, of one size in all frames; small ones suffice (`resize_mask`).
        """
        self._seen = {number: last for number, last in self._seen.items() if time - last.time <= MEMORY}
        found: list[int | None] = [None] * len(segments)
        loose: dict[str, list[int]] = {}
        for i, segment in enumerate(segments):
            if segment.track is None:
                loose.setdefault(segment.phrase, []).append(i)
            else:
                number = found[i] = self._tracks.setdefault((segment.phrase, segment.track), self._count)
                self._count = max(self._count, number + 1)
        for phrase, own in loose.items():
            known = [number for number, last in self._seen.items() if last.phrase == phrase]
            overlap = np.array([[mask_iou(masks[i], self._seen[number].mask) for number in known] for i in own])
            for row, column in zip(*linear_sum_assignment(overlap.reshape(len(own), -1), maximize=True), strict=True):
                if overlap[row, column] >= MIN_IOU:
                    found[own[row]] = known[column]
        for i, segment in enumerate(segments):
            if segment.track is None:
                known_as = found[i]
                number = self._count if known_as is None else known_as
                self._count += known_as is None
                found[i], self._seen[number] = number, _Sighting(time, segment.phrase, masks[i])
        return [number for number in found if number is not None]
