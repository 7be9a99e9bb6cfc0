"""Contact sheets: several frames of a clip in one picture, each with a title."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from openavs.errors import InputError
from openavs.structures.types import ImageArray
from openavs.visualization.fonts import text_font, truncate_text

_GAP = 4  # pixels between cells
_MIN_SIDE = 16  # pixels of the shorter side of a cell; below it nothing is recognizable
_MAX_ASPECT = 4


def contact_sheet(images: Sequence[ImageArray], titles: Sequence[str], *, max_pixels: int) -> ImageArray:
    """Return a grid of images in reading order, each below its title.

    All cells have the size of the first image at the scale at which the grid fits, at most twice as large, and at most
    four times as wide as high or the reverse. Images keep their aspect ratio. The grid is nearly square.

    Args:
        images: uint8 RGB `[H, W, 3]` each, of any sizes.
        titles: one line for each image, such as `frame 3, 2.5 s`.
        max_pixels: maximum of height times width of the grid.

    Returns:
        uint8 RGB `[H, W, 3]`.

    Raises:
        InputError: there are no images, another number of titles, or `max_pixels` has no room for them.
    """
    if not images or len(images) != len(titles):
        raise InputError(f"a contact sheet takes a title for each of its images, not {len(titles)} for {len(images)}")
    (width, height), columns = _layout(images[0], len(images), max_pixels)
    title = _title_height(width)
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + title + _GAP) - _GAP))
    draw, font = ImageDraw.Draw(sheet), text_font(_font_size(width))
    for i, (image, text) in enumerate(zip(images, titles, strict=True)):
        x, y = i % columns * (width + _GAP), i // columns * (height + title + _GAP)
        picture = Image.fromarray(image)
        scale = min(width / picture.width, height / picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        sheet.paste(
            picture.resize(size, Image.Resampling.LANCZOS),
            (x + (width - size[0]) // 2, y + title + (height - size[1]) // 2),
        )
        draw.rectangle((x, y, x + width - 1, y + title - 1), fill=(255, 255, 255))
        draw.text((x + 3, y + title / 2), truncate_text(text, font, width - 6), fill=(0, 0, 0), font=font, anchor="lm")
    return np.asarray(sheet)


def _layout(image: ImageArray, count: int, max_pixels: int) -> tuple[tuple[int, int], int]:
    """Return the (width, height) of a frame in the grid and the number of columns, for the largest frames that fit."""
    best: tuple[float, tuple[int, int], int] | None = None
    for columns in range(1, count + 1):
        rows = math.ceil(count / columns)
        size = _largest(image, rows, columns, max_pixels)
        if size is None:
            continue
        sides = columns * size[0], rows * (size[1] + _title_height(size[0]))
        elongation = max(sides) / min(sides)
        score = size[0] * size[1] / max(1.0, elongation / 2)  # among similar sizes, the squarer grid
        if best is None or score > best[0]:
            best = score, size, columns
    if best is None:
        raise InputError(f"a contact sheet of {count} frames does not fit into {max_pixels} pixels; raise 'max_pixels'")
    return best[1], best[2]


def _largest(image: ImageArray, rows: int, columns: int, max_pixels: int) -> tuple[int, int] | None:
    """Return the (width, height) of the largest frames of which a grid fits; None if all are too small."""
    height, width = image.shape[:2]
    width, height = min(width, _MAX_ASPECT * height), min(height, _MAX_ASPECT * width)
    low, high = 0.0, 2.0
    for _ in range(24):
        middle = (low + high) / 2
        size = max(1, round(width * middle)), max(1, round(height * middle))
        total = (columns * (size[0] + _GAP) - _GAP) * (rows * (size[1] + _title_height(size[0]) + _GAP) - _GAP)
        low, high = (middle, high) if total <= max_pixels else (low, middle)
    size = round(width * low), round(height * low)
    return size if min(size) >= min(_MIN_SIDE, width, height) and min(size) > 0 else None


def _font_size(width: int) -> int:
    return int(np.clip(width // 14, 10, 22))


def _title_height(width: int) -> int:
    return _font_size(width) + 6
