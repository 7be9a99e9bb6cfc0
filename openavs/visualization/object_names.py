"""One name for each object of a clip, for pictures and texts; results keep the phrases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from scipy.optimize import linear_sum_assignment

from openavs.structures.masks import RLE, rle_iou
from openavs.structures.types import FrameResult, Segment

MIN_IOU = 0.2  # of masks of one phrase that are one object, without a tracker
CROSS_PHRASE_MIN_IOU = 0.5  # of masks of two phrases
MEMORY = 3.0  # s that an object may be missed, without a tracker


@dataclass(eq=False)
class _Object:
    """An object: its last frame, the sum of its scores by phrase, and its track."""

    time: float
    mask: RLE
    track: int | None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return max(self.scores, key=self.scores.__getitem__)


def object_names(frames: Sequence[FrameResult]) -> Mapping[Segment, str]:
    """Return the shown name of every segment: the phrase with the largest sum of scores of its object.

    A track is an object. Without tracks, segments of successive frames are one object if their masks overlap; those of
    two phrases need more overlap, and phrases that are different things at some frame of the clip are never one. Names
    of tracked objects that are in one frame have the number of their track: `dog #2`.
    """
    ordered = sorted(frames, key=lambda frame: frame.time)
    apart = {pair for frame in ordered for pair in _different_things(frame.segments)}
    objects: list[_Object] = []
    rows: list[list[_Object]] = []
    owner: dict[Segment, _Object] = {}
    for frame in ordered:
        row = _link(frame, objects, apart)
        objects += [one for one in row if one not in objects]
        for segment, one in zip(frame.segments, row, strict=True):
            one.time, one.mask, owner[segment] = frame.time, segment.mask, one
            one.scores[segment.phrase] = one.scores.get(segment.phrase, 0.0) + segment.score
        rows.append(row)
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


def _different_things(segments: Sequence[Segment]) -> set[frozenset[str]]:
    """Return the pairs of phrases that a frame has at different places."""
    masks = [segment.mask for segment in segments]
    iou = rle_iou(masks, masks)
    pairs = combinations(range(len(segments)), 2)
    return {frozenset((segments[i].phrase, segments[j].phrase)) for i, j in pairs if iou[i, j] < CROSS_PHRASE_MIN_IOU}


def _link(frame: FrameResult, objects: Sequence[_Object], apart: set[frozenset[str]]) -> list[_Object]:
    """Return the object of each segment of a frame, an earlier or a new one."""
    tracks = {one.track: one for one in objects if one.track is not None}
    recent = [one for one in objects if one.track is None and frame.time - one.time <= MEMORY]
    loose = [segment for segment in frame.segments if segment.track is None]
    value = rle_iou([segment.mask for segment in loose], [one.mask for one in recent])
    for i, segment in enumerate(loose):
        for j, one in enumerate(recent):
            same = segment.phrase in one.scores
            fits = same or not any(frozenset((segment.phrase, other)) in apart for other in one.scores)
            if not fits or value[i, j] < (MIN_IOU if same else CROSS_PHRASE_MIN_IOU):
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
