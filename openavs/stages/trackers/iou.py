"""Tracks without a model: segments of neighbouring frames that overlap are the same thing.

For any segmenter: every frame is looked at, and what was found is linked by how masks and boxes overlap, each thing
moved on by its own speed. A thing that was not found for a while is found again near where it was; frames between two
finds that were missed for a moment are filled with the mask in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from openavs.errors import InputError
from openavs.stages.trackers.association import Overlap, mask_box, mask_iou, match_tracks, remaining_rejections
from openavs.stages.trackers.base import TrackedFrame
from openavs.structures.boxes import iou
from openavs.structures.types import RLE, Box, ImageArray, Segment, mask_to_rle, rle_to_mask

_NO_PIXELS: ImageArray = np.zeros((1, 1, 3), dtype=np.uint8)
_STEADY = 1.0  # s for which a thing is taken to keep its speed


class IouTracker:
    """Links the segments of each frame to those before.

    Args:
        min_iou: least mean overlap of masks and boxes for two segments to be the same thing.
        memory: s for which a thing is remembered after it was last found.
        speed: how far a thing may have got while it was not found, in its own sizes a second.
        fill: s of missing frames between two finds that are filled, if what is sought sounds there; 0 fills none.
    """

    every = 1

    def __init__(self, *, min_iou: float = 0.2, memory: float = 10.0, speed: float = 1.0, fill: float = 1.0) -> None:
        if not 0 < min_iou <= 1:
            raise InputError(f"iou: min_iou is more than 0 and at most 1, not {min_iou}")
        if min(memory, speed, fill) < 0:
            raise InputError(f"iou: memory, speed and fill are not negative, not {memory}, {speed}, {fill}")
        self.min_iou, self.memory, self.speed, self.fill = min_iou, memory, speed, fill

    def track(self, sightings: Iterable[TrackedFrame]) -> Iterator[TrackedFrame]:
        """See `Tracker.track`; what leaves is at most `fill` seconds behind, and without its pixels."""
        links = _Links(self)
        held: deque[TrackedFrame] = deque()
        for sighting in sightings:
            bare = replace(sighting.frame, image=_NO_PIXELS)  # a second of large frames would be a lot to hold
            held.append(replace(sighting, frame=bare, segments=links.link(sighting)))
            _fill(held, self.fill)
            while held[-1].frame.time - held[0].frame.time > self.fill:
                yield held.popleft()
        yield from held


@dataclass(frozen=True)
class _Known:
    """A thing as it was last found: what it is called, where and when it was, and how fast it went (pixels a s)."""

    track: int
    phrases: frozenset[str]
    last: Segment
    time: float
    velocity: tuple[float, float] = (0.0, 0.0)

    def at(self, time: float) -> tuple[RLE, Box]:
        """Its mask and box where they should be by now."""
        ahead = min(time - self.time, _STEADY)
        dx, dy = (v * ahead for v in self.velocity)
        x0, y0, x1, y1 = self.last.box
        return _moved(self.last.mask, round(dx), round(dy)), (x0 + dx, y0 + dy, x1 + dx, y1 + dy)

    def found(self, segment: Segment, time: float) -> _Known:
        """The thing after one more find; its speed is the mean of the one it had and the one it showed."""
        elapsed = time - self.time
        velocity = self.velocity
        if 0 < elapsed <= _STEADY:
            shown = [(b - a) / elapsed for a, b in zip(_centre(self.last.box), _centre(segment.box), strict=True)]
            velocity = ((velocity[0] + shown[0]) / 2, (velocity[1] + shown[1]) / 2)
        return _Known(self.track, self.phrases | {segment.phrase}, segment, time, velocity)


class _Links:
    """The things of one clip so far."""

    def __init__(self, rules: IouTracker) -> None:
        self.rules = rules
        self.known: list[_Known] = []
        self.given = 0  # ids, counted from 0 and never used again

    def link(self, sighting: TrackedFrame) -> tuple[Segment, ...]:
        """The segments of the next frame with their tracks."""
        time, found = sighting.frame.time, sighting.segments
        self.known = [thing for thing in self.known if time - thing.time <= self.rules.memory]
        if not found:
            return ()
        same = np.array([[s.phrase in thing.phrases for s in found] for thing in self.known], dtype=np.bool_)
        same = same.reshape(len(self.known), len(found))
        places = [thing.at(time) for thing in self.known]
        who = match_tracks(_overlap(places, found), same, self.rules.min_iou)
        near = np.where(same, self._nearness([box for _, box in places], found, time), 0.0)
        near[[row for row in who if row is not None], :] = 0.0
        near[:, [column for column, row in enumerate(who) if row is not None]] = 0.0
        later = match_tracks(near, same, np.finfo(float).tiny)
        return tuple(
            self._note(segment, first if first is not None else second, time)
            for segment, first, second in zip(found, who, later, strict=True)
        )

    def _note(self, segment: Segment, place: int | None, time: float) -> Segment:
        if place is None:
            self.known.append(_Known(self.given, frozenset(), segment, time))
            self.given += 1
            place = len(self.known) - 1
        named = replace(segment, track=self.known[place].track)
        self.known[place] = self.known[place].found(named, time)
        return named

    def _nearness(self, expected: Sequence[Box], found: Sequence[Segment], time: float) -> Overlap:
        """1 where a thing should be by now, falling to 0 at half its size and what it may have gone since."""
        near = np.zeros((len(expected), len(found)))
        for i, (box, thing) in enumerate(zip(expected, self.known, strict=True)):
            reach = _extent(box) * (0.5 + self.rules.speed * (time - thing.time))
            for j, segment in enumerate(found):
                (x, y), (u, v) = _centre(box), _centre(segment.box)
                near[i, j] = max(1 - np.hypot(u - x, v - y) / max(reach, 1e-9), 0.0)
        return near


def _overlap(expected: Sequence[tuple[RLE, Box]], found: Sequence[Segment]) -> Overlap:
    """The mean overlap of masks and of boxes, `[expected, found]`."""
    masks = mask_iou([mask for mask, _ in expected], [segment.mask for segment in found])
    boxes = [[iou(box, segment.box) for segment in found] for _, box in expected]
    mean: Overlap = (masks + np.array(boxes, dtype=np.float64).reshape(masks.shape)) / 2
    return mean


def _fill(held: deque[TrackedFrame], longest: float) -> None:
    """Fills frames before the newest one in which a thing was missed that is found now and was found before."""
    newest = held[-1]
    for segment in newest.segments:
        back = next(
            (i for i in range(len(held) - 2, -1, -1) if any(s.track == segment.track for s in held[i].segments)), None
        )
        if back is None or newest.frame.time - held[back].frame.time > longest:
            continue
        before = next(s for s in held[back].segments if s.track == segment.track)
        span = newest.frame.time - held[back].frame.time
        for i in range(back + 1, len(held) - 1):
            if segment.phrase in held[i].phrases:
                share = (held[i].frame.time - held[back].frame.time) / span
                segments = (*held[i].segments, _between(before, segment, share))
                held[i] = replace(held[i], segments=segments, rejected=remaining_rejections(held[i].rejected, segments))


def _between(before: Segment, after: Segment, share: float) -> Segment:
    """A segment `share` of the way from one find to the next: the nearer one's mask, moved."""
    near = before if share < 0.5 else after
    (x, y), (u, v) = _centre(before.box), _centre(after.box)
    here = _centre(near.box)
    mask = _moved(near.mask, round(x + share * (u - x) - here[0]), round(y + share * (v - y) - here[1]))
    score = min(before.score, after.score)
    return replace(after, mask=mask, box=mask_box(mask), score=score, mask_score=near.mask_score)


def _moved(mask: RLE, dx: int, dy: int) -> RLE:
    """A mask moved by whole pixels; what leaves the picture is gone."""
    if dx == dy == 0:
        return mask
    dense = rle_to_mask(mask)
    height, width = dense.shape
    dx, dy = max(min(dx, width), -width), max(min(dy, height), -height)
    moved = np.zeros_like(dense)
    target = moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
    target[...] = dense[max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
    return mask_to_rle(moved)


def _centre(box: Box) -> tuple[float, float]:
    return ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def _extent(box: Box) -> float:
    """The size of a box: the square root of its area."""
    return float(np.sqrt(max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)))
