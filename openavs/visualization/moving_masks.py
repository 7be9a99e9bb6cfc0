"""Masks between the sampled frames of a video, carried along by dense optical flow.

Between two sampled frames the flow of small frames (Kroeger et al., "Fast Optical Flow using Dense Inverse Search",
ECCV 2016; OpenCV's DIS) is composed from both ends. The masks of the frame before and of the frame after are warped
with it, and one turns into the other around the middle. A cut ends both.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from openavs.structures.association import MIN_IOU, match_objects
from openavs.structures.masks import RLE, mask_iou, mask_to_rle, rle_to_mask, small_size
from openavs.structures.types import BoolMask, Clip, DenseFrameSource, Frame, FrameResult, ImageArray, Segment

Field = npt.NDArray[np.float32]  # [h, w, 2]: where the pixels of a small frame are in another one, as (x, y)
Gray = npt.NDArray[np.uint8]
Pair = tuple[Segment | None, Segment | None]

_MAX_RATE = 25.0  # small frames per second
_MAX_FRAMES = 64  # small frames between two sampled ones: bounds the memory for long gaps
_MAX_GAP = 10.0  # s; masks are not carried farther
_LONGEST_SIDE = 256  # pixels of the small frames
_MASK_SIDE = 480  # pixels of the masks that are warped
_TURN = (0.3, 0.7)  # shares of the way between which the mask before turns into the mask after
_CUT_LEVELS = 24.0  # gray levels; mean change that the flow leaves unexplained at a cut


class Gap:
    """The motion from one sampled frame to the next, computed as far as it is requested.

    Args:
        first: number of the first small frame.
        last: number of the last one.
        images: the small frames, at least one; fewer than up to `last` if the video ends early.
        flow: computes the motion between two of them.
    """

    def __init__(self, first: int, last: int, images: Sequence[Gray], flow: cv2.DISOpticalFlow) -> None:
        self.first, self.last, self.count = first, last, len(images)
        self._images, self._flow = images, flow
        self._grid = np.stack(np.meshgrid(*map(np.arange, images[0].shape[::-1])), axis=-1).astype(np.float32)
        self._ahead: list[Field | None] = [self._grid]
        self._back: list[Field | None] = [self._grid if self.is_whole else None]

    @property
    def is_whole(self) -> bool:
        """Whether the video lasts to the end of the gap."""
        return self.count == self.last - self.first + 1

    def ahead(self, k: int) -> Field | None:
        """Return where the pixels of frame `first + k` are in frame `first`; None beyond a cut."""
        for at in range(len(self._ahead), k + 1):
            self._ahead.append(self._compose(self._ahead[-1], at, at - 1))
        return self._ahead[k]

    def back(self, k: int) -> Field | None:
        """Return where the pixels of frame `first + k` are in frame `last`; None beyond a cut."""
        for at in range(self.count - 1 - len(self._back), k - 1, -1):
            self._back.append(self._compose(self._back[-1], at, at + 1))
        return self._back[self.count - 1 - k]

    def _compose(self, field: Field | None, at: int, neighbor: int) -> Field | None:
        """Return the field from an image to one end of the gap, given that of its neighbor on the way there."""
        image, other = self._images[at], self._images[neighbor]
        if field is None or image is other:
            return field
        step = self._grid + np.asarray(self._flow.calc(image, other, None))  # type: ignore[call-overload]
        explained = _remap(other, step, cv2.BORDER_REPLICATE)
        if cv2.norm(image, explained, cv2.NORM_L1) > _CUT_LEVELS * image.size:
            return None
        return np.asarray(_remap(field, step, cv2.BORDER_REPLICATE))


class MovingMasks:
    """The results of a clip at any time, with masks that move; times are best requested in order.

    Args:
        frames: results of the sampled frames.
        clip: the clip; without it, and for clips without frames between the sampled ones, masks stand still.
    """

    def __init__(self, frames: Sequence[FrameResult], clip: Clip | None = None) -> None:
        self._frames = sorted(frames, key=lambda frame: frame.time)
        self._times = [frame.time for frame in self._frames]
        spacing = np.diff(self._times)
        # Farther than a sampling interval from all frames there is no result: the file is truncated or starts late.
        self._reach = float(np.median(spacing)) if len(spacing) else float("inf")
        dense = None if clip is None else clip.dense_frames
        self._flow = None if dense is None else FlowReader(dense, _MAX_FRAMES / min(self._reach, _MAX_GAP))
        self._number: int | None = None  # of the gap below, by the sampled frame before it
        self._gap: Gap | None = None
        self._pairs: list[Pair] = []
        self._levels: dict[int, Gray] = {}

    def at(self, time: float) -> FrameResult | None:
        """Return the result at a time in seconds; None farther than a sampling interval from all sampled frames.

        Captions and prompts are those of the nearest sampled frame; in the middle of two, of the later one.
        `interpolated` is True for masks that were moved.
        """
        after = bisect_right(self._times, time)
        near = [i for i in (after - 1, after) if 0 <= i < len(self._times)]
        if not near:
            return None
        nearest = self._frames[min(near, key=lambda i: (round(abs(self._times[i] - time), 6), -i))]
        distance = abs(nearest.time - time)
        if distance > self._reach + 1e-6:
            return None
        before = self._frames[after - 1] if after > 0 else None
        behind = self._frames[after] if after < len(self._frames) else None
        empty = not any(frame.segments for frame in (before, behind) if frame is not None)
        if self._flow is None or empty or distance > _MAX_GAP or distance < 0.5 / self._flow.rate:
            return nearest
        if after - 1 != self._number:
            self._number = after - 1
            self._enter(self._flow, before, behind)
        if self._gap is None:
            return nearest  # the video ended before
        segments = self._segments(self._gap, round(time * self._flow.rate))
        return replace(nearest, segments=segments, interpolated=True)

    def _enter(self, flow: FlowReader, before: FrameResult | None, behind: FrameResult | None) -> None:
        """Read the motion between two sampled frames, and pair their segments."""
        reach = min(self._reach, _MAX_GAP)
        start = before.time if before is not None else max(self._times[0] - reach, 0.0)
        end = behind.time if behind is not None else self._times[-1] + reach
        self._gap, self._levels = flow.gap(start, end), {}
        ours, theirs = (() if frame is None else frame.segments for frame in (before, behind))
        self._pairs = self._pair(self._gap, ours, theirs) if self._gap else []

    def _segments(self, gap: Gap, index: int) -> tuple[Segment, ...]:
        """Return the segments at small frame `index` of a gap."""
        k = min(max(index - gap.first, 0), gap.count - 1)
        share = k / max(gap.last - gap.first, 1)
        if self._number == -1:
            share = 1.0  # before the first sampled frame
        elif self._number == len(self._frames) - 1:
            share = 0.0
        found = []
        for ours, theirs in self._pairs:
            # Without a partner a mask lasts to the middle, as it would if the nearest frame's masks were shown.
            fades = (theirs is None and share >= 0.5 and gap.back(k) is not None) or (
                ours is None and share < 0.5 and gap.ahead(k) is not None
            )
            mask = None if fades else self._mask(gap, ours, theirs, k, share)
            shown = ours if theirs is None or (ours is not None and share < 0.5) else theirs
            if mask is not None and shown is not None:
                found.append(replace(shown, mask=mask))
        return tuple(found)

    def _mask(self, gap: Gap, ours: Segment | None, theirs: Segment | None, k: int, share: float) -> RLE | None:
        """Return the mask of one object at a share of the way from one sampled frame to the next; None without one."""
        turned = min(max((share - _TURN[0]) / (_TURN[1] - _TURN[0]), 0.0), 1.0)
        ends = [(ours, gap.ahead, 1 - turned), (theirs, gap.back, turned)]
        parts: list[tuple[Gray, float]] = []
        for segment, field, weight in sorted(ends, key=lambda end: -end[2]):
            # An end without weight replaces the other one beyond a cut, and where the object is missing there.
            way = field(k) if segment is not None and (weight > 0 or not parts) else None
            if segment is not None and way is not None:
                parts.append((warp(self._level(segment), way), weight))
        if not parts:
            return None
        level = parts[0][0]
        if len(parts) == 2:
            level = np.asarray(cv2.addWeighted(level, parts[0][1], parts[1][0], parts[1][1], 0.0), dtype=np.uint8)
        (size, *_) = (segment.mask.size for segment in (ours, theirs) if segment is not None)
        return level_to_rle(level, size)

    def _level(self, segment: Segment) -> Gray:
        """Return a segment's mask as gray levels at the size at which masks are warped."""
        level = self._levels.get(id(segment))
        if level is None:
            level = self._levels[id(segment)] = mask_to_level(rle_to_mask(segment.mask), _MASK_SIDE)
        return level

    def _pair(self, gap: Gap, ours: Sequence[Segment], theirs: Sequence[Segment]) -> list[Pair]:
        """Pair the segments of two sampled frames: those of one track, else those of one phrase that overlap most.

        The overlap is that of the masks that are moved to the middle.
        """

        @cache
        def moved(segment: Segment, field: Callable[[int], Field | None]) -> BoolMask | None:
            way = field(gap.count // 2)
            return None if way is None else warp(self._level(segment), way) > 127

        iou = np.zeros((len(ours), len(theirs)))
        for (i, own), (j, other) in product(enumerate(ours), enumerate(theirs)):
            if own.track is not None or other.track is not None:
                iou[i, j] = own.track == other.track
            elif own.phrase == other.phrase:
                one, two = moved(own, gap.ahead), moved(other, gap.back)
                iou[i, j] = 0.0 if one is None or two is None else mask_iou(one, two)
        before = match_objects(iou, MIN_IOU)
        partner = {i: other for i, other in zip(before, theirs, strict=True) if i is not None}
        alone = [other for i, other in zip(before, theirs, strict=True) if i is None]
        return [*((own, partner.get(i)) for i, own in enumerate(ours)), *((None, other) for other in alone)]


class FlowReader:
    """Reads a clip's small frames in order and composes the flow between them.

    Args:
        source: the decoder.
        rate: frames per second; at most 25.
    """

    def __init__(self, source: DenseFrameSource, rate: float) -> None:
        self.rate = min(rate, _MAX_RATE)
        self._open = source
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._flow.setFinestScale(1)  # half of the small frames' size: small objects are lost at a quarter
        self._frames: Iterator[Frame] = iter(())
        self._next: int | None = None  # number of the frame that is read next
        self._image: ImageArray | None = None  # the frame before it, and its brightness
        self._gray: Gray | None = None

    def gap(self, start: float, end: float) -> Gap | None:
        """Return the motion between two times in seconds; None if the video has ended."""
        first, last = (max(round(time * self.rate - 0.5), 0) for time in (start, end))
        images = self._read(first, last)
        return Gap(first, last, images, self._flow) if images else None

    def _read(self, first: int, last: int) -> list[Gray]:
        """Return the small frames `first` to `last` as far as there are; a repeated picture is the same object."""
        if self._next is None or first < self._next - 1:  # at the start, or for a second pass over the video
            self._frames, self._next, self._image = self._open(self.rate, _LONGEST_SIDE), 0, None
        grays = [self._gray] if self._next == first + 1 and self._gray is not None else []
        while self._next <= last:
            frame = next(self._frames, None)
            if frame is None:
                break
            if self._gray is None or frame.image is not self._image:
                gray = np.asarray(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
                self._image, self._gray = frame.image, gray
            self._next = frame.index + 1
            if frame.index >= first:
                grays.append(self._gray)
        return grays


def mask_to_level(mask: BoolMask, longest_side: int) -> Gray:
    """Return a mask `[H, W]` as gray levels 0 to 255, reduced by averaging to at most `longest_side` pixels."""
    height, width = small_size((mask.shape[0], mask.shape[1]), longest_side)
    level = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(level, dtype=np.uint8)


def level_to_rle(level: Gray, size: tuple[int, int]) -> RLE | None:
    """Return the mask of gray levels from 128 on, enlarged to (height, width); None for an empty one."""
    window = _window(level > 127, size)
    if window is None:
        return None
    left, top, right, bottom = window
    part = cv2.threshold(_enlarge(level, window, size), 127, 1, cv2.THRESH_BINARY)[1]
    mask = np.zeros(size[::-1], dtype=np.bool_)  # transposed, as run-length codes go by columns
    mask[left:right, top:bottom] = cv2.transpose(part).view(np.bool_)
    return mask_to_rle(mask.T) if part.any() else None


def warp(level: Gray, field: Field) -> Gray:
    """Warp gray levels `[H, W]` with the field of a small frame; pixels from outside the picture are 0."""
    size, small = level.shape, field.shape[:2]
    there = _remap(cv2.resize(level, small[::-1]), field, cv2.BORDER_CONSTANT)
    out = np.zeros(size, dtype=np.uint8)
    window = _window(there > 0, size)
    if window is not None:
        left, top, right, bottom = window
        across, down = size[1] / small[1], size[0] / small[0]
        # From the centers of the field's pixels to those of the mask's; numpy is slow for arrays with two columns.
        scaled: Any = cv2.multiply(field, (across, down, 0, 0))  # type: ignore[call-overload]
        sources = cv2.add(scaled, ((across - 1) / 2, (down - 1) / 2, 0, 0))  # type: ignore[call-overload]
        out[top:bottom, left:right] = _remap(level, _enlarge(sources, window, size), cv2.BORDER_CONSTANT)
    return out


def _window(small: BoolMask, size: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """Return left, top, right, bottom of a small mask's foreground, with a margin, in a picture of another size."""
    x, y, width, height = cv2.boundingRect(small.view(np.uint8))
    if not width:
        return None
    (rows, columns), (down, across) = small.shape, (size[0] / small.shape[0], size[1] / small.shape[1])
    left, right = max(x - 2, 0) * across, min(x + width + 2, columns) * across
    top, bottom = max(y - 2, 0) * down, min(y + height + 2, rows) * down
    return round(left), round(top), round(right), round(bottom)


def _enlarge(small: Any, window: tuple[int, int, int, int], size: tuple[int, ...]) -> Any:
    """Return a window of a small array that is enlarged to a size, interpolated between the centers of pixels."""
    left, top, right, bottom = window
    across, down = small.shape[1] / size[1], small.shape[0] / size[0]
    move = np.array([[across, 0, (left + 0.5) * across - 0.5], [0, down, (top + 0.5) * down - 0.5]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(small, move, (right - left, bottom - top), flags=how, borderMode=cv2.BORDER_REPLICATE)


def _remap(values: Any, field: Field, border: int) -> Any:
    return cv2.remap(values, field, None, cv2.INTER_LINEAR, borderMode=border)  # type: ignore[call-overload]
