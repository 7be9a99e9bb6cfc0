"""One name for each object of a clip, for pictures and texts; results keep the phrases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from scipy.optimize import linear_sum_assignment

from openavs.structures.masks import RLE, rle_iou
from openavs.structures.types import FrameResult, Segment

MIN_IOU = 0.2  # of masks of one object in successive frames, without a tracker
SAME_PLACE = 0.5  # IoU of masks at one place: masks of two phrases there are evidence that both name one thing
MEMORY = 3.0  # s that an object may be missed, without a tracker


Phrases = frozenset[str]


@dataclass(eq=False)
class _Object:
    """An object: its last frame, its track, the sum of its scores by phrase, and its shown name."""

    time: float
    mask: RLE
    track: int | None
    scores: dict[str, float] = field(default_factory=dict)
    name: str = ""


def object_names(frames: Sequence[FrameResult]) -> Mapping[Segment, str]:
    """Return the shown name of every segment: of the phrases of its object that with the largest sum of scores.

    A track is an object. Without tracks, segments of successive frames are one object if their masks overlap. Two
    phrases can name one object if they are at the same place in successive frames somewhere in the clip, and at
    different places in no frame. Names of tracked objects that are in one frame have the number of their track:
    `dog #2`.
    """
    ordered = sorted((frame for frame in frames if frame.segments), key=lambda frame: frame.time)
    apart = {pair for frame in ordered for pair, iou in _overlaps(frame, frame) if iou < SAME_PLACE}
    near = [(one, other) for one, other in pairwise(ordered) if other.time - one.time <= MEMORY]
    alike = {pair for one, other in near for pair, iou in _overlaps(one, other) if iou >= SAME_PLACE} - apart
    objects: list[_Object] = []
    rows: list[list[_Object]] = []
    owner: dict[Segment, _Object] = {}
    for frame in ordered:
        row = _link(frame, objects, alike, apart)
        objects += [one for one in row if one not in objects]
        for segment, one in zip(frame.segments, row, strict=True):
            one.time, one.mask, owner[segment] = frame.time, segment.mask, one
            one.scores[segment.phrase] = one.scores.get(segment.phrase, 0.0) + segment.score
        rows.append(row)
    total: dict[str, float] = defaultdict(float)
    for segment, one in owner.items():
        total[segment.phrase] += segment.score * (one.track is None)
    for one in objects:  # a fast object is several without a tracker: these share the scores of the clip
        one.name = max(one.scores, key=(total if one.track is None else one.scores).__getitem__)
    numbered = set()
    for row in rows:
        tracked: dict[str, set[int | None]] = defaultdict(set)
        for one in row:
            tracked[one.name] |= {one.track} - {None}
        numbered |= {name for name, tracks in tracked.items() if len(tracks) > 1}
    return {
        segment: f"{one.name} #{one.track}" if one.track is not None and one.name in numbered else one.name
        for segment, one in owner.items()
    }


def _overlaps(one: FrameResult, other: FrameResult) -> Iterator[tuple[Phrases, float]]:
    """Yield the phrases and the IoU of every pair of segments of two frames."""
    value = rle_iou([segment.mask for segment in one.segments], [segment.mask for segment in other.segments])
    for i, first in enumerate(one.segments):
        for j, second in enumerate(other.segments):
            yield frozenset((first.phrase, second.phrase)), float(value[i, j])


def _link(frame: FrameResult, objects: Sequence[_Object], alike: set[Phrases], apart: set[Phrases]) -> list[_Object]:
    """Return the object of each segment of a frame, an earlier or a new one."""
    tracks = {one.track: one for one in objects if one.track is not None}
    recent = [one for one in objects if one.track is None and frame.time - one.time <= MEMORY]
    loose = [segment for segment in frame.segments if segment.track is None]
    value = rle_iou([segment.mask for segment in loose], [one.mask for one in recent])
    for i, segment in enumerate(loose):
        for j, one in enumerate(recent):
            pairs = {frozenset((segment.phrase, phrase)) for phrase in one.scores}
            same = segment.phrase in one.scores
            if value[i, j] < MIN_IOU or not (same or (pairs & alike and not pairs & apart)):
                value[i, j] = 0.0
            elif same:
                value[i, j] += 1.0  # objects of the phrase come first
    known: dict[int, _Object] = {}  # by position in `loose`
    for i, j in zip(*linear_sum_assignment(value, maximize=True), strict=True):
        if value[i, j] > 0:
            known[int(i)] = recent[j]
    row: list[_Object] = []
    position = 0
    for segment in frame.segments:
        new = _Object(frame.time, segment.mask, segment.track)
        if segment.track is None:
            row.append(known.get(position, new))
            position += 1
        else:
            row.append(tracks.setdefault(segment.track, new))
    return row
