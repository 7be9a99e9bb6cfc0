"""Colours: the Pascal VOC palette that AVSBench's masks use, and a colour-blind-friendly one for pictures."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
import numpy.typing as npt

from openavs.structures.types import FrameResult

RGB = tuple[int, int, int]

# Okabe and Ito's seven hues, then Paul Tol's "muted" ones that are told apart from them and from each other under
# the common colour deficiencies.
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
    """The 256 colours of Pascal VOC, uint8 `[256, 3]`: bit i of an index goes to channel i mod 3, high bit first."""
    index = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= (((index >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    palette.flags.writeable = False
    return palette


class Palette:
    """Gives every phrase a colour by its first appearance and keeps it; the colours repeat after the last one."""

    def __init__(self, phrases: Iterable[str] = ()) -> None:
        self._places: dict[str, int] = {}
        for phrase in phrases:
            self.place(phrase)

    def place(self, phrase: str) -> int:
        """The position of a phrase's colour in `DISTINCT`."""
        return self._places.setdefault(phrase, len(self._places)) % len(DISTINCT)

    def __getitem__(self, phrase: str) -> RGB:
        return DISTINCT[self.place(phrase)]

    @property
    def phrases(self) -> tuple[str, ...]:
        """The phrases in order of first appearance."""
        return tuple(self._places)


def palette_of(frames: Iterable[FrameResult]) -> Palette:
    """The palette of a whole clip, so that a frame's colours do not depend on which frame is painted first."""
    return Palette(segment.phrase for frame in frames for segment in frame.segments)


def ink_on(colour: RGB) -> RGB:
    """Black or white, whichever is read better on a colour (WCAG relative luminance)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)
