"""IoU tracker: segments of neighboring frames that overlap are the same object. No model is needed.

Works with any segmenter: every frame is a key frame, and its segments are matched with the tracks by the IoU of masks
and boxes, each track moved on at its own velocity. An object that was not found for a while is matched again near its
last position, and short gaps between two segments of a track are filled by interpolation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.stages.trackers.base import remaining_rejections
from openavs.structures.association import IouMatrix, match_objects
from openavs.structures.masks import RLE, iou, mask_to_rle, rle_iou, rle_to_mask
from openavs.structures.types import Box, ClipResult, Frame, ImageArray, Segment, TrackedFrame, phrases_of

_NO_PIXELS: ImageArray = np.zeros((1, 1, 3), dtype=np.uint8)
_MAX_EXTRAPOLATION = 1.0  # seconds for which an object is assumed to keep its velocity


class IouTracker:
    """Links the segments of each frame to those of the frames before.

    Args:
        min_iou: minimum mean of mask IoU and box IoU of two segments of one object.
        max_age_seconds: a track ends when its object was not found for longer.
        max_speed: distance that an object may move per second while it is not found, relative to its size.
        max_gap_seconds: gaps of a track up to this length are filled where its phrase sounds; 0 fills none.

    Raises:
        InputError: an option is out of range.
    """

    keyframe_interval = 1

    def __init__(
        self,
        *,
        min_iou: float = 0.2,
        max_age_seconds: float = 10.0,
        max_speed: float = 1.0,
        max_gap_seconds: float = 1.0,
    ) -> None:
        if not 0 < min_iou <= 1:
            raise InputError(f"iou: min_iou must be more than 0 and at most 1, not {min_iou}")
        if min(max_age_seconds, max_speed, max_gap_seconds) < 0:
            raise InputError(
                f"iou: max_age_seconds, max_speed and max_gap_seconds must be at least 0, not {max_age_seconds}, "
                f"{max_speed}, {max_gap_seconds}"
            )
        self.min_iou, self.max_speed = min_iou, max_speed
        self.max_age_seconds, self.max_gap_seconds = max_age_seconds, max_gap_seconds

    def track(self, frames: Iterable[TrackedFrame]) -> Iterator[TrackedFrame]:
        """See `Tracker.track`; the output is at most `max_gap_seconds` behind, and without pixels."""
        tracks = _IouTracks(self)
        held: deque[TrackedFrame] = deque()
        for frame in frames:
            without_pixels = replace(frame.frame, image=_NO_PIXELS)  # held frames would take much memory
            held.append(replace(frame, frame=without_pixels, segments=tracks.assign(frame)))
            _fill_gaps(held, self.max_gap_seconds)
            while held[-1].frame.time - held[0].frame.time > self.max_gap_seconds:
                yield held.popleft()
        yield from held


@dataclass(frozen=True)
class _IouTrack:
    """One object: its id, its phrases so far, its last segment and time, and its velocity in pixels per second."""

    id: int
    phrases: frozenset[str]
    last: Segment
    time: float
    velocity: tuple[float, float] = (0.0, 0.0)

    def predict(self, time: float) -> tuple[RLE, Box]:
        """Return the mask and box expected at a time."""
        elapsed = min(time - self.time, _MAX_EXTRAPOLATION)
        dx, dy = (v * elapsed for v in self.velocity)
        x0, y0, x1, y1 = self.last.box
        return _shift(self.last.mask, round(dx), round(dy)), (x0 + dx, y0 + dy, x1 + dx, y1 + dy)

    def update(self, segment: Segment, time: float) -> _IouTrack:
        """Return the track after one more segment; the velocity is the mean of the previous and the observed one."""
        elapsed = time - self.time
        velocity = self.velocity
        if 0 < elapsed <= _MAX_EXTRAPOLATION:
            observed = [(b - a) / elapsed for a, b in zip(_center(self.last.box), _center(segment.box), strict=True)]
            velocity = ((velocity[0] + observed[0]) / 2, (velocity[1] + observed[1]) / 2)
        return _IouTrack(self.id, self.phrases | {segment.phrase}, segment, time, velocity)


class _IouTracks:
    """The tracks of one clip."""

    def __init__(self, options: IouTracker) -> None:
        self.options = options
        self.tracks: list[_IouTrack] = []
        self.next_id = 0

    def assign(self, frame: TrackedFrame) -> tuple[Segment, ...]:
        """Return the segments of the next frame with their tracks."""
        time, segments = frame.frame.time, frame.segments
        self.tracks = [track for track in self.tracks if time - track.time <= self.options.max_age_seconds]
        if not segments:
            return ()
        same = np.array([[s.phrase in track.phrases for s in segments] for track in self.tracks], dtype=np.bool_)
        same = same.reshape(len(self.tracks), len(segments))
        predicted = [track.predict(time) for track in self.tracks]
        matches = match_tracks(_mean_iou(predicted, segments), same, self.options.min_iou)
        # Segments and tracks without a match are matched by distance, if they share a phrase.
        near = np.where(same, self._proximity([box for _, box in predicted], segments, time), 0.0)
        near[[row for row in matches if row is not None], :] = 0.0
        near[:, [column for column, row in enumerate(matches) if row is not None]] = 0.0
        by_distance = match_tracks(near, same, np.finfo(float).tiny)
        return tuple(
            self._add(segment, first if first is not None else second, time)
            for segment, first, second in zip(segments, matches, by_distance, strict=True)
        )

    def _add(self, segment: Segment, index: int | None, time: float) -> Segment:
        if index is None:
            self.tracks.append(_IouTrack(self.next_id, frozenset(), segment, time))
            self.next_id += 1
            index = len(self.tracks) - 1
        tracked = replace(segment, track=self.tracks[index].id)
        self.tracks[index] = self.tracks[index].update(tracked, time)
        return tracked

    def _proximity(self, predicted: Sequence[Box], segments: Sequence[Segment], time: float) -> IouMatrix:
        """Return 1 at the predicted position, falling to 0 at half the object's size plus its maximum movement."""
        near = np.zeros((len(predicted), len(segments)))
        for i, (box, track) in enumerate(zip(predicted, self.tracks, strict=True)):
            reach = _size(box) * (0.5 + self.options.max_speed * (time - track.time))
            for j, segment in enumerate(segments):
                (x, y), (u, v) = _center(box), _center(segment.box)
                near[i, j] = max(1 - np.hypot(u - x, v - y) / max(reach, 1e-9), 0.0)
        return near


def _mean_iou(predicted: Sequence[tuple[RLE, Box]], segments: Sequence[Segment]) -> IouMatrix:
    """Return the mean of mask IoU and box IoU, `[tracks, segments]`."""
    masks = rle_iou([mask for mask, _ in predicted], [segment.mask for segment in segments])
    boxes = [[iou(box, segment.box) for segment in segments] for _, box in predicted]
    mean: IouMatrix = (masks + np.array(boxes, dtype=np.float64).reshape(masks.shape)) / 2
    return mean


def _fill_gaps(held: deque[TrackedFrame], max_gap: float) -> None:
    """Add interpolated segments to the frames between the newest segment of each track and the one before."""
    newest = held[-1]
    for after in newest.segments:
        earlier = ((i, s) for i in range(len(held) - 2, -1, -1) for s in held[i].segments if s.track == after.track)
        if (found := next(earlier, None)) is None:
            continue
        first, before = found
        gap = newest.frame.time - held[first].frame.time
        if gap > max_gap:
            continue
        for i in range(first + 1, len(held) - 1):
            if after.phrase in held[i].phrases:
                share = (held[i].frame.time - held[first].frame.time) / gap
                segments = (*held[i].segments, _interpolate(before, after, share))
                held[i] = replace(held[i], segments=segments, rejected=remaining_rejections(held[i].rejected, segments))


def _interpolate(before: Segment, after: Segment, share: float) -> Segment:
    """Return a segment at a share of the way from one to the next: the mask of the nearer one, shifted."""
    near = before if share < 0.5 else after
    (x, y), (u, v) = _center(before.box), _center(after.box)
    near_x, near_y = _center(near.box)
    mask = _shift(near.mask, round(x + share * (u - x) - near_x), round(y + share * (v - y) - near_y))
    score = min(before.score, after.score)
    return replace(after, mask=mask, box=mask.box, score=score, mask_score=near.mask_score)


def _shift(mask: RLE, dx: int, dy: int) -> RLE:
    """Shift a mask by whole pixels, cropped at the borders of the image."""
    if dx == dy == 0:
        return mask
    dense = rle_to_mask(mask)
    height, width = dense.shape
    dx, dy = max(min(dx, width), -width), max(min(dy, height), -height)
    shifted = np.zeros_like(dense)
    target = shifted[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
    target[...] = dense[max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
    return mask_to_rle(shifted)


def _center(box: Box) -> tuple[float, float]:
    return ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def _size(box: Box) -> float:
    """Return the square root of a box's area."""
    return float(np.sqrt(max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)))


CROSS_PHRASE_MIN_IOU = 0.5
"""Minimum IoU of a track and a segment with different phrases."""

SAME_PHRASE_BONUS = 0.25
"""Added to the IoU of a track and a segment with the same phrase. Small: detectors confuse phrases, too."""


def match_tracks(iou: IouMatrix, same_phrase: npt.NDArray[np.bool_], min_iou: float) -> list[int | None]:
    """Match tracks and segments one to one, see `match_objects`; a track can change its phrase.

    A pair of one phrase needs an IoU of `min_iou`, any other also one of `CROSS_PHRASE_MIN_IOU`.

    Args:
        iou: `[tracks, segments]`, in [0, 1].
        same_phrase: whether a track had the segment's phrase before, `[tracks, segments]`.
        min_iou: minimum IoU of a pair.

    Returns:
        For each segment the index of its track, or None for a new object.
    """
    least = np.where(same_phrase, min_iou, max(CROSS_PHRASE_MIN_IOU, min_iou))
    return match_objects(iou, least, SAME_PHRASE_BONUS * same_phrase)


_NO_IMAGE: ImageArray = np.zeros((1, 1, 3), dtype=np.uint8)


def link_tracks(result: ClipResult) -> ClipResult:
    """Return the result with a track for every segment: of a result without tracks, those that overlap in time."""
    loose = [[s for s in f.segments if s.track is None] for f in result.frames]
    if not any(loose):
        return result
    first = max((s.track for f in result.frames for s in f.segments if s.track is not None), default=-1) + 1
    given = (
        TrackedFrame(Frame(f.index, f.time, _NO_IMAGE), phrases_of(f.prompts), tuple(own))
        for f, own in zip(result.frames, loose, strict=True)
    )
    frames = []
    for f, linked in zip(result.frames, IouTracker(max_gap_seconds=0.0).track(given), strict=True):
        numbers = iter(first + (s.track or 0) for s in linked.segments)
        own = (s if s.track is not None else replace(s, track=next(numbers)) for s in f.segments)
        frames.append(replace(f, segments=tuple(own)))
    return replace(result, frames=tuple(frames))
