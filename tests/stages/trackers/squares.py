"""Clips with square segments, for the trackers' tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from openavs.structures.masks import RLE, mask_to_rle
from openavs.structures.types import Frame, Rejection, Segment, TrackedFrame

SIZE = (40, 120)
FPS = 8.0


def square(x: float, y: float = 10, side: int = 12) -> RLE:
    """A filled square with its top left corner at (x, y), cropped to the image."""
    mask = np.zeros(SIZE, dtype=np.bool_)
    left, top = round(x), round(y)
    mask[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = True
    return mask_to_rle(mask)


def segment(phrase: str, x: float, y: float = 10, score: float = 0.5, side: int = 12) -> Segment:
    mask = square(x, y, side)
    return Segment(mask, mask.box, phrase, score)


def frames(
    rows: Sequence[Sequence[Segment]],
    *,
    phrases: Sequence[Sequence[str]] | None = None,
    keys: Iterable[int] | None = None,
) -> list[TrackedFrame]:
    """Frames of one clip, one per row; their phrases are those of the row, unless given."""
    keys = set(range(len(rows)) if keys is None else keys)
    made = []
    for i, row in enumerate(rows):
        own = tuple(phrases[i]) if phrases is not None else tuple(dict.fromkeys(s.phrase for s in row))
        if not own:
            continue
        shown = Frame(i, i / FPS, np.zeros((*SIZE, 3), dtype=np.uint8))
        missing = tuple(Rejection(p, "not found") for p in own if p not in {s.phrase for s in row} and i in keys)
        made.append(TrackedFrame(shown, own, tuple(row) if i in keys else (), missing, i in keys))
    return made


def tracks(tracked: Iterable[TrackedFrame]) -> dict[int, dict[str, list[int]]]:
    """Track ids by frame and phrase."""
    found: dict[int, dict[str, list[int]]] = {}
    for frame in tracked:
        row = found.setdefault(frame.frame.index, {})
        for s in frame.segments:
            assert s.track is not None
            row.setdefault(s.phrase, []).append(s.track)
    return found
