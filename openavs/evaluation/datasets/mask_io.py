"""Reads masks from PNG files, strictly: what is not exactly the format's is refused with the file's name.

A file's own header is checked before anything is decoded, so that a huge or 16-bit picture costs nothing.
"""

from __future__ import annotations

import io
import logging
import os
import struct
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from openavs.errors import InputError
from openavs.evaluation.datasets.classes import CLASSES
from openavs.structures.types import BoolMask
from openavs.visualization.colors import voc_palette

log = logging.getLogger(__name__)
MAX_PIXELS = 1 << 26  # 8192 x 8192
MAX_BYTES = 1 << 28
SIGNATURE = b"\x89PNG\r\n\x1a\n"

Size = tuple[int, int]
Labels = npt.NDArray[np.uint8]

_GREY, _RGB, _PALETTE = 0, 2, 3  # PNG's colour types; 4 and 6 are grey and RGB with alpha


class PngHeader(NamedTuple):
    """What a PNG says of itself: height and width, bits per channel, colour type."""

    size: Size
    depth: int
    colour: int


def png_size(path: Path) -> Size:
    """Height and width from the first bytes of a file."""
    return _header(path, _bytes(path, 33)).size


def read_binary_truth(path: Path) -> BoolMask:
    """A binary ground-truth mask `[H, W]`: values 0 and 255 or 0 and 1, grey, boolean, palette indices or equal RGB.

    The published loader thresholds S4 at 128 with dithering and divides MS3 by 255; both equal this for the values
    that the releases hold, and other values are refused rather than guessed.
    """
    image, _ = _open(path)
    if image.mode == "P" and any((image.getpalette() or [0])[:3]):
        raise InputError(f"{path} has a palette that begins with another colour than black; a mask's background is 0")
    values = _grey(image, path)
    if image.mode == "1":
        return values.astype(np.bool_)
    odd = values[(values > 1) & (values != 255)]
    if odd.size or (np.any(values == 1) and np.any(values == 255)):
        found = int(odd.flat[0]) if odd.size else "both 1 and 255"
        raise InputError(f"{path} holds the value {found}; a binary mask has 0 and 255 (or 0 and 1) alone")
    return np.asarray(values > 0)


def read_probability(path: Path) -> Labels:
    """A predicted binary mask `[H, W]`, uint8: the probability times 255 (8-bit grey), or 0 and 255 (1-bit grey).

    A palette of greys counts as grey: AVSBench's own script saves its masks so.
    """
    image, header = _open(path)
    if image.mode == "1":
        return np.asarray(image, dtype=np.uint8) * np.uint8(255)
    if image.mode == "P" and _has_grey_palette(image):
        return np.asarray(image.convert("L"))
    if image.mode != "L" or header.depth != 8:
        raise InputError(
            f"{path} is {_kind(header)}; a predicted mask is an 8-bit grey PNG (value / 255 is the probability, "
            "0 and 255 a hard mask)"
        )
    return np.asarray(image)


def read_index(path: Path, size: Size | None = None) -> Labels:
    """Class indices `[H, W]` from an 8-bit grey PNG or the indices of a palette PNG; `size` resizes to the nearest."""
    image, header = _open(path)
    if image.mode not in ("L", "P") or (image.mode == "L" and header.depth != 8):
        raise InputError(
            f"{path} is {_kind(header)}; a label map is an 8-bit grey or palette PNG whose value is the class index"
        )
    top = np.asarray(image).max()
    if top >= len(CLASSES):
        raise InputError(f"{path} holds the value {top}; class indices go from 0 to {len(CLASSES) - 1}")
    return np.asarray(_nearest(image, size))


def read_predicted_labels(path: Path) -> Labels:
    """Read the class indices `[H, W]` of a predicted label map: indices (see `read_index`) or colors of the palette.

    An RGB PNG cannot hold indices, so its meaning is clear. A color that is not in the palette is refused: smooth
    resizing makes such colors, and at some edges the colors of other classes.
    """
    if _header(path, _bytes(path, 33)).colour != _RGB:
        return read_index(path)
    rgb = read_rgb(path)
    labels = decode_palette(rgb)
    unknown = (labels == 0) & rgb.any(axis=-1)
    if unknown.any():
        color = tuple(int(value) for value in rgb[unknown][0])
        raise InputError(
            f"{path} holds the color {color}, which is not in AVSBench-semantic's palette of 71 classes; write masks "
            "that were not resized smoothly, or class indices"
        )
    return labels


def read_palette(path: Path, size: Size | None = None) -> Labels:
    """Class indices `[H, W]` from the colours of an RGB mask of AVSBench-semantic, resized to the nearest first."""
    rgb = read_rgb(path, size)
    labels = decode_palette(rgb)
    _check_colours(path, rgb, labels)
    return labels


def read_rgb(path: Path, size: Size | None = None) -> npt.NDArray[np.uint8]:
    """The colours `[H, W, 3]` of a mask."""
    image, header = _open(path)
    if image.mode == "P":
        image = image.convert("RGB")
    if image.mode not in ("RGB", "RGBA"):
        raise InputError(f"{path} is {_kind(header)}; a mask in labels_rgb is an RGB PNG")
    return np.asarray(_nearest(image, size))[..., :3]


def _check_colours(path: Path, rgb: npt.NDArray[np.uint8], labels: Labels) -> None:
    """A few stray colours are background, as in the published code; a mask made of them has another palette."""
    unknown = (labels == 0) & rgb.any(axis=-1)
    if not (count := int(unknown.sum())):
        return
    colour = tuple(int(value) for value in rgb[unknown][0])
    if 2 * count > count + np.count_nonzero(labels):
        raise InputError(f"{path} holds the colour {colour}, which is not in AVSBench-semantic's palette of 71 classes")
    log.warning("%s: %d pixels of colours outside the palette, such as %s, count as background", path, count, colour)


def decode_palette(rgb: npt.NDArray[np.uint8]) -> Labels:
    """Class indices uint8 `[...]` of RGB colours uint8 `[..., 3]` by one look-up; unknown colours are background, 0."""
    key = rgb[..., 0].astype(np.intp)
    for channel in (1, 2):
        key <<= 8
        key |= rgb[..., channel]
    return _table()[key]


@cache
def _table() -> Labels:
    """Colour as a 24-bit number -> class index."""
    table = np.zeros(1 << 24, dtype=np.uint8)
    for index, (red, green, blue) in enumerate(voc_palette()[: len(CLASSES)].tolist()):
        table[red << 16 | green << 8 | blue] = index
    table.flags.writeable = False
    return table


def resize_mask(mask: npt.NDArray[Any], size: Size) -> npt.NDArray[Any]:
    """Resize a mask to another (height, width) by the pixels nearest to the new pixels' centers, as Pillow does."""
    if mask.shape == size:
        return mask
    return np.asarray(_nearest(Pillow.fromarray(mask), size))


def sampled(mask: npt.NDArray[Any], size: Size) -> npt.NDArray[Any]:
    """Resize a mask to another (height, width) by the pixels floor(i * scale), as `torch.nn.Upsample` does.

    These lie up to half a new pixel above and to the left of the centers. The product is taken in float32, as in torch.
    """
    rows, columns = (
        np.floor(np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new))).astype(np.intp)
        for old, new in zip(mask.shape, size, strict=True)
    )
    return np.asarray(mask[rows.clip(max=mask.shape[0] - 1)[:, None], columns.clip(max=mask.shape[1] - 1)])


# ----------------------------------------------------------------------------------------------------------- files


def _bytes(path: Path, count: int = MAX_BYTES) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(min(count, os.fstat(file.fileno()).st_size))  # a read sets aside all that is asked for
    except OSError as problem:
        raise InputError(f"cannot read the mask {path}: {problem.strerror or problem}") from problem


def _header(path: Path, data: bytes) -> PngHeader:
    if data[:8] != SIGNATURE or data[12:16] != b"IHDR" or len(data) < 33:
        raise InputError(f"{path} is not a PNG file" if data[:8] != SIGNATURE else f"{path} is a truncated PNG file")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    if not 0 < width * height <= MAX_PIXELS:
        raise InputError(f"{path} says that it has {width} x {height} pixels; no mask has more than {MAX_PIXELS}")
    if depth == 16:
        raise InputError(f"{path} has 16 bits per channel; a mask has 8")
    return PngHeader((height, width), depth, colour)


def _open(path: Path) -> tuple[Pillow.Image, PngHeader]:
    """The decoded picture; only Pillow's PNG reader is tried."""
    data = _bytes(path)
    header = _header(path, data)
    try:
        image = Pillow.open(io.BytesIO(data), formats=("PNG",))
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as problem:
        raise InputError(f"{path} is a broken or truncated PNG file ({problem})") from problem
    return image, header


def _kind(header: PngHeader) -> str:
    names = {_GREY: "grey", _RGB: "RGB", _PALETTE: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
    return f"a {header.depth}-bit {names.get(header.colour, 'unknown')} PNG"


def _grey(image: Pillow.Image, path: Path) -> npt.NDArray[np.uint8]:
    """One value per pixel: the mask itself, or the channel that all colours share."""
    values = np.asarray(image)
    if values.ndim == 2:
        return values
    channels = values[..., : 1 if image.mode == "LA" else 3]
    if np.any(channels != channels[..., :1]):
        raise InputError(f"{path} has colours; a binary mask is black and white")
    return np.asarray(channels[..., 0])


def _has_grey_palette(image: Pillow.Image) -> bool:
    colours = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    used = np.unique(np.asarray(image))
    return bool(used[-1] < len(colours) and np.all(colours[used] == colours[used][:, :1]))


def _nearest(image: Pillow.Image, size: Size | None) -> Pillow.Image:
    """The picture at `size` (height, width), as the published code resizes masks."""
    if size is None or image.size == (size[1], size[0]):
        return image
    return image.resize((size[1], size[0]), Pillow.Resampling.NEAREST)
