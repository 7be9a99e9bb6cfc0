"""One name for each object of a clip, for pictures and texts; results keep the phrases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from openavs.structures.association import MEMORY, ObjectLinker
from openavs.structures.masks import rle_iou
from openavs.structures.types import FrameResult, Segment

SAME_PLACE = 0.5  # IoU of masks at one place: masks of two phrases there are evidence that both name one thing

Phrases = frozenset[str]


@dataclass(eq=False)
class _Object:
    """An object: its track, the sum of its scores by phrase, and its shown name."""

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

    def renamed(phrase: str, phrases: Collection[str]) -> bool:
        pairs = {frozenset((phrase, other)) for other in phrases}
        return bool(pairs & alike) and not pairs & apart

    linker = ObjectLinker(renamed)
    objects: dict[tuple[bool, int], _Object] = {}
    rows: list[list[_Object]] = []
    for frame in ordered:
        rows.append([])
        for segment, number in zip(frame.segments, linker.link(frame.time, frame.segments), strict=True):
            key = (False, number) if segment.track is None else (True, segment.track)
            one = objects.setdefault(key, _Object(segment.track))
            one.scores[segment.phrase] = one.scores.get(segment.phrase, 0.0) + segment.score
            rows[-1].append(one)
    total: dict[str, float] = defaultdict(float)
    for one in objects.values():  # a fast object is several without a tracker: these share the scores of the clip
        for phrase, score in one.scores.items():
            total[phrase] += score * (one.track is None)
    for one in objects.values():
        one.name = max(one.scores, key=(total if one.track is None else one.scores).__getitem__)
    numbered = set()
    for row in rows:
        tracked: dict[str, set[int | None]] = defaultdict(set)
        for one in row:
            tracked[one.name] |= {one.track} - {None}
        numbered |= {name for name, tracks in tracked.items() if len(tracks) > 1}
    return {
        segment: f"{one.name} #{one.track}" if one.track is not None and one.name in numbered else one.name
        for frame, row in zip(ordered, rows, strict=True)
        for segment, one in zip(frame.segments, row, strict=True)
    }


def _overlaps(one: FrameResult, other: FrameResult) -> Iterator[tuple[Phrases, float]]:
    """Yield the phrases and the IoU of every pair of segments of two frames."""
    value = rle_iou([segment.mask for segment in one.segments], [segment.mask for segment in other.segments])
    for i, first in enumerate(one.segments):
        for j, second in enumerate(other.segments):
            yield frozenset((first.phrase, second.phrase)), float(value[i, j])
