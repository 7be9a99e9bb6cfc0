"""Colors: the Pascal VOC palette of mask files, and a colorblind-safe palette."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt

from openavs.structures.types import FrameResult, Segment
from openavs.visualization.object_names import object_names

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


@cache
def voc_palette() -> npt.NDArray[np.uint8]:
    """Return the 256 colors of Pascal VOC, uint8 `[256, 3]`.

    Bit i of an index goes to channel i mod 3, most significant bit first (VOCdevkit, `VOClabelcolormap.m`).
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= (((index >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    palette.flags.writeable = False
    return palette


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
