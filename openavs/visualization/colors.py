"""Colors and shown names of a clip's objects; results keep the phrases.

The Pascal VOC palette is that of mask files, a colorblind-safe palette that of pictures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from openavs.structures.association import MEMORY, ObjectLinker
from openavs.structures.masks import rle_iou
from openavs.structures.types import FrameResult, Segment

RGB = tuple[int, int, int]

# The seven hues of Okabe and Ito, then five of Paul Tol's "muted" scheme, which remain distinct from them and from each
# other under the common color deficiencies.
DISTINCT: tuple[RGB, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
    (136, 34, 85),
    (153, 153, 51),
    (51, 34, 136),
    (170, 68, 153),
    (17, 119, 51),
)


class Palette:
    """Assigns `DISTINCT` colors to names by first appearance, cyclically, and shown names to segments.

    Args:
        phrases: names in order of appearance.
        names: shown names of segments; those of others are their phrases.
    """

    def __init__(self, phrases: Iterable[str] = (), names: Mapping[Segment, str] | None = None) -> None:
        self._indices: dict[str, int] = {}
        self._names = names or {}
        self._renamed: dict[str, set[str]] = {}
        for segment, name in self._names.items():
            self._renamed.setdefault(segment.phrase, set()).add(name)
        for phrase in phrases:
            self.index(phrase)

    def index(self, phrase: str) -> int:
        """Return the index of a phrase's color in `DISTINCT`."""
        return self._indices.setdefault(phrase, len(self._indices)) % len(DISTINCT)

    def __getitem__(self, phrase: str) -> RGB:
        return DISTINCT[self.index(phrase)]

    @property
    def phrases(self) -> tuple[str, ...]:
        """The names in order of first appearance."""
        return tuple(self._indices)

    def name(self, segment: Segment) -> str:
        """Return the shown name of a segment."""
        return self._names.get(segment, segment.phrase)

    def shown(self, frame: FrameResult) -> FrameResult:
        """Return a frame for presentation, with shown names as phrases of segments and of their prompts."""
        found = {s.phrase: self.name(s) for s in sorted(frame.segments, key=lambda s: s.score)}
        alone = {phrase: next(iter(names)) for phrase, names in self._renamed.items() if len(names) == 1}
        names = alone | found
        return replace(
            frame,
            segments=tuple(replace(s, phrase=self.name(s)) for s in frame.segments),
            prompts=tuple(replace(p, phrase=names.get(p.phrase, p.phrase)) for p in frame.prompts),
        )


def palette_of(frames: Iterable[FrameResult]) -> Palette:
    """Return the palette and the shown names of a clip, which are independent of the order of painting."""
    frames = tuple(frames)
    names = object_names(frames)
    return Palette((names[segment] for frame in frames for segment in frame.segments), names)


def text_color(background: RGB) -> RGB:
    """Return black or white, by contrast with a background (luminance of WCAG 2)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


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
