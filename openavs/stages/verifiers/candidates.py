"""Candidates of a clip over time: which segments are one object, their cut-outs, and the choices about them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from openavs.structures.association import ObjectLinker
from openavs.structures.masks import resize_mask, rle_to_mask
from openavs.structures.types import (
    BoolMask,
    Decision,
    DenseFrameSource,
    Frame,
    ImageArray,
    Rejection,
    Segment,
    TrackedFrame,
    Verdict,
)

_SLACK = 1e-6  # s; times are sums of floats


@dataclass(frozen=True, eq=False)
class Outline:
    """A candidate in one sampled frame, at the size of the small frames.

    Attributes:
        time: seconds from the start of the clip.
        square: the square around its mask.
        mask: the mask in that square, `[side, side]`.
    """

    time: float
    square: Square
    mask: BoolMask

    @property
    def center(self) -> tuple[float, float]:
        """Row and column of the square's center, in pixels."""
        return self.square.top + self.square.side / 2, self.square.left + self.square.side / 2


class CandidateTimeline:
    """Reads tracked frames ahead, and keeps the outlines of every candidate around the present.

    A candidate is an object of a phrase, see `ObjectLinker`.

    Args:
        frames: the tracked frames, in order.
        size: (height, width) of the small frames, in pixels.
        margin: space around a mask, relative to its longer side.
    """

    def __init__(self, frames: Iterable[TrackedFrame], size: tuple[int, int], margin: float) -> None:
        self._frames, self._size, self._margin = iter(frames), size, margin
        self._ahead: deque[TrackedFrame] = deque()
        self._outlines: dict[int, list[Outline]] = {}
        self._keys: dict[int, list[int]] = {}
        self._linker = ObjectLinker()
        self._read_to = float("-inf")

    def next_interval(self, length: float) -> list[TrackedFrame]:
        """Return the next frames whose times are in one interval of `length` seconds; none at the end."""
        if not self._ahead and not self._read():
            return []
        index = interval_of(self._ahead[0].frame.time, length)
        self.read_until((index + 1) * length)
        found = []
        while self._ahead and interval_of(self._ahead[0].frame.time, length) == index:
            found.append(self._ahead.popleft())
        return found

    def read_until(self, time: float) -> list[TrackedFrame]:
        """Read frames until one is at or after `time`, and return those that are read ahead."""
        while self._read_to < time and self._read():
            pass
        return list(self._ahead)

    def keys(self, frame: TrackedFrame) -> list[int]:
        """Return the candidate of each segment of a frame; segments of one candidate have equal keys."""
        return self._keys[frame.frame.index]

    def outlines(self, key: int, start: float, end: float) -> list[Outline]:
        """Return the outlines of a candidate between two times, and the one before and after if there are."""
        own = self._outlines.get(key, [])
        inside = [i for i, outline in enumerate(own) if start <= outline.time <= end]
        return own[max(inside[0] - 1, 0) : inside[-1] + 2] if inside else []

    def forget(self, before: float, frames: Iterable[TrackedFrame]) -> None:
        """Drop the outlines before a time, and the keys of frames that are done."""
        for frame in frames:
            self._keys.pop(frame.frame.index, None)
        for key, own in list(self._outlines.items()):
            kept = [outline for outline in own if outline.time >= before]
            if kept:
                self._outlines[key] = kept
            else:
                del self._outlines[key]

    def _read(self) -> bool:
        """Read one frame; False at the end."""
        tracked = next(self._frames, None)
        if tracked is None:
            self._read_to = float("inf")
            return False
        time = self._read_to = tracked.frame.time
        masks = [resize_mask(rle_to_mask(segment.mask), self._size) for segment in tracked.segments]
        keys = self._keys[tracked.frame.index] = self._linker.link(time, tracked.segments)
        for mask, key in zip(masks, keys, strict=True):
            square = square_around(mask, self._margin)
            if square is not None:
                outline = Outline(time, square, cut_square(mask, square, False))
                self._outlines.setdefault(key, []).append(outline)
        self._ahead.append(tracked)
        return True


class FrameWindow:
    """The small frames around the present: a clip's dense frames or, where there are none, its sampled frames.

    Args:
        dense: decoder of the frames between the sampled ones; None without one.
        fps: frames per second to decode.
        longest_side: of the small frames, in pixels.
        size: (height, width) of the small frames.
    """

    def __init__(self, dense: DenseFrameSource | None, fps: float, longest_side: int, size: tuple[int, int]) -> None:
        self._source = None if dense is None else dense(fps, longest_side)
        self._size = size
        self._held: deque[Frame] = deque()

    def offer(self, sampled: Iterable[TrackedFrame]) -> None:
        """Take sampled frames, in order; those that it has are skipped, and all if there are dense frames."""
        if self._source is None:
            for tracked in sampled:
                if not self._held or tracked.frame.index > self._held[-1].index:
                    self._hold(tracked.frame)

    def images(self, times: Sequence[float]) -> list[ImageArray]:
        """Return the frame nearest to each of some increasing times; none if no frame could be read.

        The times of a call do not begin before those of the last one.
        """
        while self._source is not None and (not self._held or self._held[-1].time < times[-1]):
            frame = next(self._source, None)
            if frame is None:
                break
            self._hold(frame)
            self._drop(times[0])
        self._drop(times[0])
        if not self._held:
            return []
        known = np.asarray([frame.time for frame in self._held])
        return [self._held[int(np.abs(known - time).argmin())].image for time in times]

    def _hold(self, frame: Frame) -> None:
        image = frame.image
        if image.shape[:2] != self._size:
            image = np.asarray(Image.fromarray(image).resize(self._size[::-1], Image.Resampling.BILINEAR))
        self._held.append(Frame(frame.index, frame.time, image))

    def _drop(self, start: float) -> None:
        """Drop the frames before a time, except the last of them, which may be the nearest."""
        while len(self._held) > 1 and self._held[1].time <= start:
            self._held.popleft()


def film_candidate(
    outlines: Sequence[Outline],
    times: Sequence[float],
    images: Sequence[ImageArray],
    fill: npt.NDArray[np.uint8],
    background: float,
) -> ImageArray:
    """Return a candidate's cut-outs, `[T, side, side, 3]`, at the given times.

    The square is the same at all times, so that motion within it stays visible: it holds all outlines. Between sampled
    frames the mask is the nearest one, moved with the interpolated center.

    Args:
        outlines: the candidate in sampled frames, by time; at least one.
        times: the times of the images, in seconds.
        images: the frames.
        fill: color of the background, uint8 `[3]`.
        background: opacity of the image around the mask, in [0, 1].
    """
    square = _common_square(outlines)
    known = np.asarray([outline.time for outline in outlines])
    rows, columns = zip(*(outline.center for outline in outlines), strict=True)
    film = []
    for time, image in zip(times, images, strict=True):
        nearest = outlines[int(np.abs(known - time).argmin())]
        row, column = float(np.interp(time, known, rows)), float(np.interp(time, known, columns))
        top, left = round(row - nearest.square.side / 2), round(column - nearest.square.side / 2)
        mask = cut_square(nearest.mask, Square(square.top - top, square.left - left, square.side), False)
        film.append(cut_out(image, mask, square, fill, background))
    return np.stack(film)


def _common_square(outlines: Sequence[Outline]) -> Square:
    """Return the smallest square around the squares of all outlines."""
    squares = [outline.square for outline in outlines]
    top, left = min(s.top for s in squares), min(s.left for s in squares)
    height, width = max(s.top + s.side for s in squares) - top, max(s.left + s.side for s in squares) - left
    side = max(height, width)
    return Square(top - (side - height) // 2, left - (side - width) // 2, side)


def interval_of(time: float, length: float) -> int:
    """Return the index of the interval of `length` seconds that a time is in."""
    return int(np.floor(time / length + _SLACK))


def window_times(start: float, end: float, count: int) -> list[float]:
    """Return the middles of `count` equal parts of an interval."""
    return [start + (i + 0.5) * (end - start) / count for i in range(count)]


class Square(NamedTuple):
    """A square in pixels; it may extend beyond the image."""

    top: int
    left: int
    side: int


def square_around(mask: BoolMask, margin: float) -> Square | None:
    """Return the square around a mask `[H, W]`; None for an empty mask.

    Args:
        mask: the mask.
        margin: space on each side, relative to the longer side of the mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
    side = max(round(max(height, width) * (1 + 2 * margin)), 1)
    return Square(top - (side - height) // 2, left - (side - width) // 2, side)


def cut_square(array: npt.NDArray[Any], square: Square, fill: Any) -> npt.NDArray[Any]:
    """Cut a square out of an image or mask `[H, W, ...]`: `[side, side, ...]`, with `fill` beyond its edges."""
    top, left, side = square
    cut = np.empty((side, side, *array.shape[2:]), dtype=array.dtype)
    cut[...] = fill
    rows = slice(max(top, 0), max(min(top + side, array.shape[0]), 0))
    columns = slice(max(left, 0), max(min(left + side, array.shape[1]), 0))
    inside = array[rows, columns]
    row, column = rows.start - top, columns.start - left
    cut[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return cut


def cut_out(
    image: ImageArray, mask: BoolMask, square: Square, fill: npt.NDArray[np.uint8], background: float
) -> ImageArray:
    """Cut the square out of an image and fill its background: uint8 `[side, side, 3]`.

    Args:
        image: the image.
        mask: the segment's mask within the square, `[side, side]`.
        square: the square in the image.
        fill: color of the background and of all beyond the image, uint8 `[3]`.
        background: opacity of the image around the mask, in [0, 1].
    """
    cut = cut_square(image, square, fill)
    if background == 0:
        cut[~mask] = fill
        return cut
    pixels = cut.astype(np.float32)
    around = fill + background * (pixels - fill)
    return np.asarray(np.where(mask[..., None], pixels, around).round(), dtype=np.uint8)


@dataclass(frozen=True)
class Choice:
    """The decision about one candidate of a phrase.

    Attributes:
        decision: `kept`, `rejected` or `unresolved`.
        score: how well it fits the sound, in [0, 1].
        margin: see `Verdict`.
        reason: reason of the rejection: `silent` or `off-screen`; None unless rejected.
    """

    decision: Decision
    score: float
    margin: float | None = None
    reason: str | None = None


def apply_choices(tracked: TrackedFrame, choices: Sequence[Choice], verifier: str) -> TrackedFrame:
    """Return a frame with a verdict on every segment; rejected segments become rejections, the best one first.

    Args:
        tracked: the frame.
        choices: one for each segment.
        verifier: name of the verifier.
    """
    segments: list[Segment] = []
    rejected: list[Rejection] = []
    for segment, choice in zip(tracked.segments, choices, strict=True):
        if choice.reason is not None:
            rejected.append(
                Rejection(segment.phrase, choice.reason, choice.score, segment.box, choice.margin, verifier)
            )
            continue
        verdict = Verdict(choice.decision, choice.score, choice.margin, None, verifier)
        segments.append(replace(segment, verdicts=(*segment.verdicts, verdict)))
    rejected.sort(key=lambda rejection: -(rejection.score or 0.0))
    return replace(tracked, segments=tuple(segments), rejected=(*tracked.rejected, *rejected))
