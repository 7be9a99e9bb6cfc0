"""Segments at the size of small frames: the pixels that move with them, and the same object from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation
from scipy.optimize import linear_sum_assignment

from openavs.stages.verifiers.candidates import mask_iou
from openavs.stages.verifiers.residual_motion import MotionMap
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import BoolMask, Segment, TrackedFrame

_DILATION = 2  # small pixels around a mask that move with it
_MIN_IOU = 0.2  # of masks of one phrase in neighboring frames that are the same object, without a tracker


@dataclass(frozen=True, eq=False)
class SegmentOutline:
    """A segment at the size of the small frames.

    Attributes:
        mask: the mask, `[h, w]`.
        pixels: flat indices of the pixels that move with it.
        levels: motion in them, by number of the small frame; filled as needed.
    """

    mask: BoolMask
    pixels: npt.NDArray[np.intp]
    levels: dict[int, float] = field(default_factory=dict)

    def level(self, change: MotionMap) -> float:
        """Return the mean square of the change, in gray levels, beyond that of the rest of the picture; at least 0."""
        if change.index not in self.levels:
            inside = change.change.ravel()[self.pixels]
            power = float(inside @ inside) / max(len(inside), 1)
            self.levels[change.index] = max(power - change.outside, 0.0)
        return self.levels[change.index]


class OutlinedFrame:
    """A tracked frame without its pixels, and the outlines of its segments."""

    def __init__(self, tracked: TrackedFrame) -> None:
        blank = np.zeros((1, 1, 3), dtype=np.uint8)  # frames that wait would take much memory
        self.tracked = replace(tracked, frame=replace(tracked.frame, image=blank))
        self.time, self.segments = tracked.frame.time, tracked.segments
        self.shape = (1, 1)

    @cached_property
    def outlines(self) -> list[SegmentOutline]:
        """Outlines of the segments; `shape` must be set before."""
        masks = [_small(rle_to_mask(segment.mask), self.shape) for segment in self.segments]
        found = []
        for i, mask in enumerate(masks):
            others = [other for j, other in enumerate(masks) if j != i]
            near = binary_dilation(mask, iterations=_DILATION) & ~np.logical_or.reduce([*others, ~np.ones_like(mask)])
            found.append(SegmentOutline(mask, np.flatnonzero(near if near.any() else mask)))
        return found

    @cached_property
    def outside(self) -> BoolMask:
        """The pixels away from all segments."""
        free = np.ones(self.shape, dtype=np.bool_)
        for outline in self.outlines:
            free &= ~outline.mask
        return ~binary_dilation(~free, iterations=_DILATION + 1) if self.segments else free


def match_outlines(
    last: Sequence[tuple[Segment, SegmentOutline]], other: OutlinedFrame, phrase: str
) -> list[tuple[int, int]]:
    """Return pairs of a candidate and a segment of another frame that are the same object: by track or by IoU."""
    pool = [j for j, segment in enumerate(other.segments) if segment.phrase == phrase]
    pairs = []
    gain = np.zeros((len(last), len(pool)))
    for i, (segment, outline) in enumerate(last):
        for k, j in enumerate(pool):
            if segment.track is not None or other.segments[j].track is not None:
                gain[i, k] = segment.track == other.segments[j].track
            else:
                gain[i, k] = mask_iou(outline.mask, other.outlines[j].mask)
    for i, k in zip(*linear_sum_assignment(gain, maximize=True), strict=True):
        if gain[i, k] >= _MIN_IOU:
            pairs.append((int(i), pool[int(k)]))
    return pairs


def _small(mask: BoolMask, shape: tuple[int, int]) -> BoolMask:
    """Resize a mask to (height, width); where no part of it is left, all pixels that it touches."""
    if mask.shape == shape:
        return mask
    rows, columns = (
        ((np.arange(small) + 0.5) * size / small).astype(np.intp) for small, size in zip(shape, mask.shape, strict=True)
    )
    small: BoolMask = mask[rows][:, columns]
    if not small.any() and mask.any():
        y, x = np.nonzero(mask)
        small = np.zeros(shape, dtype=np.bool_)
        small[y * shape[0] // mask.shape[0], x * shape[1] // mask.shape[1]] = True
    return small
