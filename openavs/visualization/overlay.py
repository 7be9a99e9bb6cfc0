"""Overlays: tinted and outlined masks with labels, and along the bottom what was captioned and what was not found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from openavs.models.catalog import is_only_synthetic
from openavs.structures.masks import RLE, rle_to_mask, rle_to_part
from openavs.structures.types import BoolMask, Clip, ClipResult, FrameResult, ImageArray, Segment
from openavs.visualization.colors import DISTINCT, RGB, Palette, palette_of, text_color
from openavs.visualization.fonts import Font, text_font, truncate_text
from openavs.visualization.moving_masks import MovingMasks

SYNTHETIC = "synthetic demo model"
_ALPHA = 0.45  # opacity of a mask, so that the object below remains recognizable
_NUMBER_ALPHA = 0.1  # of a numbered mask, whose contour counts
_Rectangle = tuple[int, int, int, int]


def paint(
    image: ImageArray,
    segments: Sequence[Segment],
    palette: Palette | None = None,
    *,
    status: str = "",
    text_scale: float = 1.0,
    watermark: str = "",
) -> ImageArray:
    """Paint segments and a line of text on a copy of an image.

    Args:
        image: uint8 `[H, W, 3]`, of any size from 1x1; text is omitted if it does not fit.
        segments: painted in order of their scores, the highest on top. Masks of another size are resized.
        palette: of the clip; by default, of these segments.
        status: text along the bottom.
        text_scale: enlarges the text, which is sized by the image, for images that are shown small.
        watermark: text for the upper right corner.
    """
    palette = palette if palette is not None else Palette(s.phrase for s in segments)
    height, width = image.shape[:2]
    painted = np.array(image, dtype=np.uint8)
    labels: list[tuple[Segment, _Rectangle]] = []
    for segment in sorted(segments, key=lambda s: s.score):
        part = _mask_part(segment.mask, (height, width))
        if part is not None:
            _paint_mask(painted, *part, palette[segment.phrase])
            labels.append((segment, part[1]))
    size = _text_size(width, height, text_scale)
    occupied: list[_Rectangle] = []
    strip = _status_plate(status, size, width, height)
    if strip is not None:
        strip.paste(painted, 0, height - strip.height)
        height -= strip.height
    mark = _watermark_plate(watermark, size, width, image.shape[0])
    if mark is not None:
        occupied.append(mark.paste(painted, width - mark.width, 0))
    for segment, bounds in reversed(labels):  # the highest score is placed first
        plate = _label_plate(segment.phrase, segment.score, palette[segment.phrase], size, width)
        place = None if plate is None else _label_place(plate, bounds, occupied, (width, height))
        if plate is not None and place is not None:
            occupied.append(plate.paste(painted, *place))
    return painted


def paint_layer(
    size: tuple[int, int], segments: Sequence[Segment], palette: Palette, *, text_scale: float = 1.0
) -> ImageArray:
    """Return what `paint` adds to an image of (height, width), as RGB with opacity, uint8 `[H, W, 4]`."""
    # Painting is linear in the image, so two images determine color and opacity.
    dark, light = (
        paint(np.full((*size, 3), level, dtype=np.uint8), segments, palette, text_scale=text_scale).astype(np.float32)
        for level in (0, 255)
    )
    opacity = 255 - (light - dark).mean(axis=2)
    color = dark * 255 / np.maximum(opacity, 1)[..., None]
    layer = np.concatenate([color, opacity[..., None]], axis=2)
    return np.asarray(np.clip(layer, 0, 255).round(), dtype=np.uint8)


def paint_frame(image: ImageArray, frame: FrameResult, palette: Palette | None = None) -> ImageArray:
    """Paint the segments and the status of a frame, with the names and in the colors of a clip's palette."""
    shown = frame if palette is None else palette.shown(frame)
    return paint(image, shown.segments, palette, status=status_line(shown))


def paint_numbers(image: ImageArray, masks: Mapping[int, RLE], size: tuple[int, int]) -> ImageArray:
    """Outline masks and put their numbers on plates, one color per number ("set of marks", arXiv 2310.11441).

    A plate is inside its mask where it takes a fourth of it at most, else beside it; plates cover each other only if
    there is no room.

    Args:
        image: uint8 `[H, W, 3]`.
        masks: the mask of each number, in the size of the image.
        size: (height, width) of the output, at which the numbers are drawn.

    Returns:
        uint8 RGB in the given size.
    """
    height, width = size
    painted = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    placed: list[tuple[int, BoolMask, _Rectangle]] = []
    for number, rle in sorted(masks.items(), key=lambda item: -item[1].area):
        mask = _resize(rle_to_mask(rle), size)
        bounds = _bounds(mask)
        if bounds is not None:
            part = mask[bounds[1] : bounds[3], bounds[0] : bounds[2]]
            _paint_mask(painted, part, bounds, DISTINCT[(number - 1) % len(DISTINCT)], _NUMBER_ALPHA)
            placed.append((number, mask, bounds))
    canvas = Image.fromarray(painted)
    draw, font = ImageDraw.Draw(canvas), text_font(int(np.clip(min(size) // 14, 12, 28)))
    occupied: list[_Rectangle] = []
    for number, mask, bounds in reversed(placed):  # small masks have fewer places for their number
        plate = round(font.getlength(str(number))) + 6, int(np.clip(min(size) // 14, 12, 28)) + 4
        x, y = _plate_center(mask, bounds, plate, size, occupied)
        place = x - plate[0] // 2, y - plate[1] // 2, x - plate[0] // 2 + plate[0], y - plate[1] // 2 + plate[1]
        occupied.append(place)
        color = DISTINCT[(number - 1) % len(DISTINCT)]
        draw.rectangle(place, fill=color, outline=text_color(color))
        draw.text(((place[0] + place[2]) / 2, (place[1] + place[3]) / 2), str(number), text_color(color), font, "mm")
    return np.asarray(canvas)


def _plate_center(
    mask: BoolMask, bounds: _Rectangle, plate: tuple[int, int], size: tuple[int, int], occupied: Sequence[_Rectangle]
) -> tuple[int, int]:
    """Return the center (x, y) of a number's plate of (width, height), inside an image of (height, width)."""
    x0, y0, x1, y1 = bounds
    inner = distance_transform_edt(np.pad(mask[y0:y1, x0:x1], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(inner.argmax()), inner.shape)
    inside = x0 + int(column), y0 + int(row)
    middle = (x0 + x1) // 2, (y0 + y1) // 2
    above, below = (middle[0], y0 - plate[1] // 2 - 1), (middle[0], y1 + plate[1] // 2 + 1)
    left, right = (x0 - plate[0] // 2 - 1, middle[1]), (x1 + plate[0] // 2 + 1, middle[1])
    places = [above, right, below, left, inside]
    if 4 * plate[0] * plate[1] <= mask.sum():
        places = [inside, above, right, below, left]
    held = []
    for x, y in places:
        x = min(max(x, plate[0] // 2), max(size[1] - plate[0] // 2 - 1, plate[0] // 2))
        y = min(max(y, plate[1] // 2), max(size[0] - plate[1] // 2 - 1, plate[1] // 2))
        held.append((x, y))
        area = x - plate[0] // 2, y - plate[1] // 2, x + plate[0] // 2 + 1, y + plate[1] // 2 + 1
        if not any(_overlap(area, other) for other in occupied):
            return x, y
    return held[0]


def status_line(frame: FrameResult) -> str:
    """Return what a frame's masks do not show: silence, phrases without a mask, captions without a prompt.

    >>> status_line(FrameResult(0, 0.5, silent=True))
    'silent'
    """
    if frame.silent:
        return "silent"
    if not frame.captions:
        return "no caption"
    texts = dict.fromkeys(c.text if c.score is None else f"{c.text} {c.score:.2f}" for c in frame.captions)
    captions = "captions: " + ", ".join(texts)
    if not frame.prompts:
        return f"no prompt; {captions}"
    found = {segment.phrase for segment in frame.segments}
    missing = dict.fromkeys(prompt.phrase for prompt in frame.prompts if prompt.phrase not in found)
    return f"not found: {', '.join(missing)}; {captions}" if missing else captions


class OverlayPainter:
    """Paints a clip at full frame rate, as a callback of `media.write_overlay`.

    Results of models that were trained on synthetic clips get a watermark.

    Args:
        result: to paint.
        palette: by default of `result`; pass that of the whole clip if `result` is a part of it.
        clip: the clip, whose motion carries the masks along between the sampled frames; without it they stand still.
        record: is called with the time and the result of every frame.
    """

    def __init__(
        self,
        result: ClipResult,
        palette: Palette | None = None,
        clip: Clip | None = None,
        record: Callable[[float, FrameResult | None], None] | None = None,
    ) -> None:
        self._record = record
        self.palette = palette if palette is not None else palette_of(result.frames)
        self._masks = MovingMasks([self.palette.shown(frame) for frame in result.frames], clip)
        self.watermark = SYNTHETIC if is_only_synthetic(result.models) else ""

    def __call__(self, time: float, image: ImageArray) -> ImageArray:
        """Return the image with the result at `time` in s."""
        frame = self._masks.at(time)
        if self._record is not None:
            self._record(time, frame)
        return self.draw(time, image, frame)

    def draw(self, time: float, image: ImageArray, frame: FrameResult | None) -> ImageArray:
        """Return the image with a result that is in its place, None for none; drawing styles override it."""
        if frame is not None:
            status = status_line(frame)
            return paint(image, frame.segments, self.palette, status=status, watermark=self.watermark)
        return paint(image, (), watermark=self.watermark) if self.watermark else image


# --------------------------------------------------------------------------------------------------------- masks


@lru_cache(maxsize=16)  # consecutive video frames may show the masks of one sampled frame
def _mask_part(rle: RLE, size: tuple[int, int]) -> tuple[BoolMask, _Rectangle] | None:
    """Return the part of a mask inside its bounds, at a size, and the bounds; None for an empty mask."""
    if rle.size == size:
        part, (left, top) = rle_to_part(rle)
        # Run-length codes go by columns; OpenCV transposes faster than numpy.
        mask = cv2.transpose(part.T.view(np.uint8)).view(np.bool_) if part.size else part
        return (mask, (left, top, left + mask.shape[1], top + mask.shape[0])) if mask.size else None
    whole = _resize(rle_to_mask(rle), size)
    bounds = _bounds(whole)
    return None if bounds is None else (whole[bounds[1] : bounds[3], bounds[0] : bounds[2]], bounds)


def _resize(mask: BoolMask, size: tuple[int, int]) -> BoolMask:
    """Scale a mask to (height, width)."""
    mask = np.ascontiguousarray(mask)
    if mask.shape == size or not (mask.size and min(size)):
        return mask
    return np.asarray(cv2.resize(mask.view(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)).view(np.bool_)


def _bounds(mask: BoolMask) -> _Rectangle | None:
    """x0, y0, x1, y1 around the foreground; None for an empty mask."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return (x, y, x + width, y + height) if width else None


def _paint_mask(image: ImageArray, part: BoolMask, bounds: _Rectangle, color: RGB, opacity: float = _ALPHA) -> None:
    """Tint a mask, given by the part inside its bounds, with an inner contour in its color and a dark outer one."""
    height, width = image.shape[:2]
    thickness = max(1, round(min(height, width) / 240))
    x0, y0, x1, y1 = bounds
    around = min(y0, thickness), min(height - y1, thickness), min(x0, thickness), min(width - x1, thickness)
    view = image[y0 - around[0] : y1 + around[1], x0 - around[2] : x1 + around[3]]
    inside = cv2.copyMakeBorder(part.view(np.uint8), *around, cv2.BORDER_CONSTANT, value=0)
    faded = cv2.convertScaleAbs(view, alpha=1 - opacity)
    tint = (*(round(opacity * value) for value in color), 0)
    cv2.copyTo(np.asarray(cv2.add(faded, tint)), inside, view)  # type: ignore[call-overload]
    view[(inside - cv2.erode(inside, _square(thickness))).view(np.bool_)] = color
    outside = cv2.dilate(inside, _square(max(1, thickness // 2))) - inside
    cv2.copyTo(cv2.convertScaleAbs(view, alpha=0.35), outside, view)


def _square(radius: int) -> npt.NDArray[np.uint8]:
    return np.ones((2 * radius + 1, 2 * radius + 1), dtype=np.uint8)


# --------------------------------------------------------------------------------------------------------- text


def _text_size(width: int, height: int, scale: float) -> int:
    return int(np.clip(round(scale * min(width, height) / 22), 10, 200))


@dataclass(frozen=True, eq=False)
class _Plate:
    """A rectangle with a line of text, drawn once and pasted into many images.

    Attributes:
        light: what it adds to an image, uint8 `[H, W, 3]`.
        clear: share of the image that remains visible, as uint8 `[H, W, 3]` of 255.
    """

    light: ImageArray
    clear: ImageArray

    @property
    def width(self) -> int:
        return int(self.light.shape[1])

    @property
    def height(self) -> int:
        return int(self.light.shape[0])

    def paste(self, image: ImageArray, left: int, top: int) -> _Rectangle:
        """Blend the plate into an image that contains the whole of it, in place; returns its rectangle."""
        view = image[top : top + self.height, left : left + self.width]
        view[:] = cv2.add(cv2.multiply(view, self.clear, scale=1 / 255), self.light)
        return left, top, left + self.width, top + self.height


def _draw_plate(
    line: str, font: Font, size: tuple[int, int], indent: int, fill: tuple[int, int, int, int], color: RGB
) -> _Plate:
    """Draw a plate of (width, height) in pixels, with its text at the left in the middle."""
    looks = []
    for level in (0, 255):  # blending is linear in the image, so two images determine color and opacity
        canvas = Image.new("RGB", size, (level,) * 3)
        draw = ImageDraw.Draw(canvas, "RGBA")
        draw.rectangle((0, 0, *size), fill=fill)
        draw.text((indent, size[1] / 2), line, fill=color, font=font, anchor="lm")
        looks.append(np.asarray(canvas))
    return _Plate(looks[0], looks[1] - looks[0])


@lru_cache(maxsize=64)
def _label_plate(phrase: str, score: float, color: RGB, size: int, limit: int) -> _Plate | None:
    """Return a plate with 'dog 0.81' of at most `limit` pixels; None if there is no room for the text."""
    font, pad = text_font(size), max(2, size // 4)
    number = f" {score:.2f}"
    name = truncate_text(phrase, font, limit - 2 * pad - font.getlength(number))
    if not name:
        return None
    width = round(font.getlength(name + number)) + 2 * pad
    return _draw_plate(name + number, font, (width, size + 2 * pad), pad, (*color, 235), text_color(color))


def _label_place(
    plate: _Plate, bounds: _Rectangle, occupied: Sequence[_Rectangle], limits: tuple[int, int]
) -> tuple[int, int] | None:
    """Return left and top of a label above its mask, moved down until it covers no other label; None without room."""
    left = max(0, min(bounds[0], limits[0] - plate.width))
    top = bounds[1] - plate.height if bounds[1] >= plate.height else bounds[1]

    def covers() -> bool:
        return any(_overlap((left, top, left + plate.width, top + plate.height), other) for other in occupied)

    while covers():
        top += plate.height + 1
    top = min(top, limits[1] - plate.height)
    return None if top < 0 or plate.width > limits[0] or covers() else (left, top)


def _overlap(one: _Rectangle, other: _Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@lru_cache(maxsize=4)
def _watermark_plate(text: str, size: int, width: int, height: int) -> _Plate | None:
    """Return the plate of the upper right corner; None if it does not fit."""
    size = max(8, round(size * 0.7))
    font, pad = text_font(size), max(2, size // 4)
    line = truncate_text(text, font, width - 4 * pad)
    if not line or size + 2 * pad > height // 3:
        return None
    place = round(font.getlength(line)) + 2 * pad, size + 2 * pad
    return _draw_plate(line, font, place, pad, (0, 0, 0, 150), (255, 255, 255))


@lru_cache(maxsize=16)
def _status_plate(status: str, size: int, width: int, height: int) -> _Plate | None:
    """Return the strip along the bottom; None if it does not fit."""
    if not status:
        return None
    font, pad = text_font(size), max(2, size // 4)
    line = truncate_text(status, font, width - 4 * pad)
    if not line or size + 3 * pad > height // 3:  # the strip would cover most of a tiny image
        return None
    return _draw_plate(line, font, (width, size + 3 * pad), 2 * pad, (0, 0, 0, 190), (255, 255, 255))
