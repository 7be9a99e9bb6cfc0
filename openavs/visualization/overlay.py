"""Paints what was found over pictures: tinted and outlined masks, a label on each, and what was heard below."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from openavs.models.catalog import is_only_synthetic
from openavs.structures.types import BoolMask, Caption, ClipResult, FrameResult, ImageArray, Segment, rle_to_mask
from openavs.visualization.colors import RGB, Palette, ink_on, palette_of

SYNTHETIC = "synthetic demo model"
_TINT = 0.45  # share of the colour inside a mask: the thing below stays recognisable
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Rectangle = tuple[int, int, int, int]


def paint(
    image: ImageArray,
    segments: Sequence[Segment],
    palette: Palette | None = None,
    *,
    heard: Sequence[Caption] = (),
    text_scale: float = 1.0,
    mark: str = "",
) -> ImageArray:
    """A copy of a picture `[H, W, 3]` with the segments painted on it, best score on top, and captions at the bottom.

    Masks of another size than the picture (a scaled copy of the video) are resized to it. Any size from 1x1 works;
    where there is no room for words there are none. Words are sized by the picture; `text_scale` enlarges them for one
    that will be shown small. `mark` is a text for the upper right corner.
    """
    colours = palette if palette is not None else Palette(s.phrase for s in segments)
    height, width = image.shape[:2]
    painted = np.array(image, dtype=np.uint8)
    ordered = sorted(segments, key=lambda s: s.score)
    chips: list[tuple[Segment, _Rectangle]] = []
    for segment in ordered:
        mask = _mask_at(segment, (height, width))
        area = _bounds(mask)
        if area is not None:
            _tint(painted, mask, area, colours[segment.phrase])
            chips.append((segment, area))
    picture = Pictures.fromarray(painted)
    draw = ImageDraw.Draw(picture, "RGBA")
    size = _text_size(width, height, text_scale)
    strip = _draw_heard(draw, heard, size, (width, height))
    taken = _draw_mark(draw, mark, size, (width, height))
    for segment, area in reversed(chips):  # the best score takes the best place
        _draw_chip(draw, segment, area, colours[segment.phrase], size, taken, (width, height - strip))
    return np.asarray(picture)


def paint_frame(image: ImageArray, frame: FrameResult, palette: Palette | None = None, mark: str = "") -> ImageArray:
    """`paint` with a frame's segments and what was heard there; pass the clip's `palette_of` to keep the colours."""
    return paint(image, frame.segments, palette, heard=frame.captions, mark=mark)


class CaptionTimeline:
    """Which frame's result is on show at a time: the nearest sampled frame's."""

    def __init__(self, frames: Sequence[FrameResult]) -> None:
        self._frames = sorted(frames, key=lambda frame: frame.time)
        self._times = [frame.time for frame in self._frames]
        gaps = np.diff(self._times)
        # Farther than a sampling interval from every sampled frame nothing is known (a truncated or started-late file).
        self._reach = float(np.median(gaps)) if len(gaps) else float("inf")

    def at(self, time: float) -> FrameResult | None:
        """The result on show at `time` in s, or None before and after what was looked at."""
        if not self._frames:
            return None
        after = bisect_left(self._times, time)
        near = [i for i in (after - 1, after) if 0 <= i < len(self._times)]
        best = min(near, key=lambda i: abs(self._times[i] - time))
        return self._frames[best] if abs(self._times[best] - time) <= self._reach + 1e-6 else None


class OverlayPainter:
    """Paints a whole clip at full frame rate: `painter(time, picture)` is what `media.write_overlay` calls.

    `palette` keeps the colours of a result of which only a part is painted. What models of the synthetic world found
    is marked as such in every picture.
    """

    def __init__(self, segmentation: ClipResult, palette: Palette | None = None) -> None:
        self._timeline = CaptionTimeline(segmentation.frames)
        self._palette = palette if palette is not None else palette_of(segmentation.frames)
        self._mark = SYNTHETIC if is_only_synthetic(segmentation.models) else ""

    def __call__(self, time: float, image: ImageArray) -> ImageArray:
        """The picture with the result that is on show at `time`."""
        frame = self._timeline.at(time)
        if frame is not None:
            return paint_frame(image, frame, self._palette, self._mark)
        return paint(image, (), mark=self._mark) if self._mark else image


# --------------------------------------------------------------------------------------------------------- masks


@lru_cache(maxsize=16)  # a film shows one sampled frame's masks many times over
def _mask_at(segment: Segment, size: tuple[int, int]) -> BoolMask:
    mask = rle_to_mask(segment.mask)
    if mask.shape != size and mask.size and min(size):
        scaled = Pictures.fromarray(mask).resize((size[1], size[0]), Pictures.Resampling.NEAREST)
        mask = np.asarray(scaled, dtype=np.bool_)
    mask.flags.writeable = False
    return mask


def _bounds(mask: BoolMask) -> _Rectangle | None:
    """x0, y0, x1, y1 around the foreground, None without any."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _tint(image: ImageArray, mask: BoolMask, area: _Rectangle, colour: RGB) -> None:
    """Tints the mask, lines its inner edge in the colour and its outer edge in black, in place."""
    thick = max(1, round(min(image.shape[:2]) / 240))
    x0, y0 = max(area[0] - thick, 0), max(area[1] - thick, 0)
    view = image[y0 : area[3] + thick, x0 : area[2] + thick]
    inside = mask[y0 : area[3] + thick, x0 : area[2] + thick]
    tone = np.array(colour, dtype=np.float32)
    view[inside] = (view[inside] * (1 - _TINT) + tone * _TINT).astype(np.uint8)
    view[inside & _grown(~inside, thick)] = colour
    rim = max(1, thick // 2)
    view[~inside & _grown(inside, rim)] = (view[~inside & _grown(inside, rim)] * 0.35).astype(np.uint8)


def _grown(mask: BoolMask, by: int) -> BoolMask:
    """The mask and every pixel within `by` steps of it (a square neighbourhood)."""
    for axis in (0, 1):
        grown = mask.copy()
        for step in range(1, min(by, mask.shape[axis] - 1) + 1):
            ahead = [slice(None), slice(None)]
            behind = [slice(None), slice(None)]
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            grown[tuple(ahead)] |= mask[tuple(behind)]
            grown[tuple(behind)] |= mask[tuple(ahead)]
        mask = grown
    return mask


# --------------------------------------------------------------------------------------------------------- words


@lru_cache(maxsize=8)
def _font(size: int) -> _Font:
    return ImageFont.load_default(size)


def _text_size(width: int, height: int, scale: float) -> int:
    return int(np.clip(round(scale * min(width, height) / 22), 10, 200))


def _shortened(text: str, font: _Font, room: float) -> str:
    """The text in one line, cut to what fits; empty where not even three letters do."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:200]).split())
    if font.getlength(line) <= room:
        return line
    while len(line) > 3:
        line = line[:-1].rstrip()
        if font.getlength(line + "...") <= room:
            return line + "..."
    return ""


def _draw_chip(
    draw: ImageDraw.ImageDraw,
    segment: Segment,
    area: _Rectangle,
    colour: RGB,
    size: int,
    taken: list[_Rectangle],
    room: tuple[int, int],
) -> None:
    """A label like 'dog 0.81' above the mask, or inside its top edge, pushed down until it covers no other label."""
    font, pad = _font(size), max(2, size // 4)
    number = f" {segment.score:.2f}"
    name = _shortened(segment.phrase, font, room[0] - 2 * pad - font.getlength(number))
    if not name:
        return
    width, height = round(font.getlength(name + number)) + 2 * pad, size + 2 * pad
    left = max(0, min(area[0], room[0] - width))
    top = area[1] - height if area[1] >= height else area[1]
    while any(_overlap((left, top, left + width, top + height), other) for other in taken):
        top += height + 1
    if height > room[1] or top + height > room[1]:
        top = max(0, room[1] - height)
    place = (left, top, left + width, top + height)
    if height > room[1] or any(_overlap(place, other) for other in taken):
        return  # a label that hides another tells less than none
    taken.append(place)
    draw.rectangle(place, fill=(*colour, 235))
    draw.text((left + pad, top + pad + size / 2), name + number, fill=ink_on(colour), font=font, anchor="lm")


def _overlap(one: _Rectangle, other: _Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_mark(draw: ImageDraw.ImageDraw, mark: str, size: int, room: tuple[int, int]) -> list[_Rectangle]:
    """Writes the mark small into the upper right corner; returns its rectangle, none where there is no room."""
    size = max(8, round(size * 0.7))
    font, pad = _font(size), max(2, size // 4)
    line = _shortened(mark, font, room[0] - 4 * pad)
    if not line or size + 2 * pad > room[1] // 3:
        return []
    place = (room[0] - round(font.getlength(line)) - 2 * pad, 0, room[0], size + 2 * pad)
    draw.rectangle(place, fill=(0, 0, 0, 150))
    draw.text((place[0] + pad, place[3] / 2), line, fill=(255, 255, 255), font=font, anchor="lm")
    return [place]


def _draw_heard(draw: ImageDraw.ImageDraw, heard: Sequence[Caption], size: int, room: tuple[int, int]) -> int:
    """A dark strip along the bottom with the captions; returns its height in pixels (0 without any)."""
    if not heard:
        return 0
    font, pad = _font(size), max(2, size // 4)
    said = [f"{c.text} {c.score:.2f}" if c.score is not None else c.text for c in heard]
    line = _shortened("heard: " + ", ".join(dict.fromkeys(said)), font, room[0] - 4 * pad)
    height = size + 3 * pad
    if not line or height > room[1] // 3:  # a strip over half of a tiny picture would hide what it is about
        return 0
    draw.rectangle((0, room[1] - height, room[0], room[1]), fill=(0, 0, 0, 190))
    draw.text((2 * pad, room[1] - height / 2), line, fill=(255, 255, 255), font=font, anchor="lm")
    return height
