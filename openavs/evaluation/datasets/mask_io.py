"""Reads masks from PNG files and annotations, with strict checks: other formats and values are errors."""

from __future__ import annotations

import logging
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip
from openavs.evaluation.datasets.tables import CLASSES
from openavs.structures.masks import RLE, check_rle, voc_palette
from openavs.structures.types import BoolMask

logger = logging.getLogger(__name__)
MAX_PIXELS = 1 << 26  # 8192 x 8192

Size = tuple[int, int]
Labels = npt.NDArray[np.uint8]


def png_size(path: Path) -> Size:
    """Return height and width from the header of a PNG file."""
    image, _ = _open(path, load=False)
    return image.height, image.width


def read_binary_truth(path: Path) -> BoolMask:
    """Read a binary ground-truth mask `[H, W]` with the values 0 and 255, or 0 and 1.

    Gray, boolean, palette indices and equal RGB channels are accepted. The published loader thresholds S4 at 128 with
    dithering and divides MS3 by 255; for the values in the releases both equal this. Other values raise an error,
    because their meaning would be a guess.

    Raises:
        InputError: not such a file.
    """
    image, _ = _open(path)
    if image.mode == "P" and any((image.getpalette() or [0])[:3]):
        raise InputError(f"{path} has a palette that begins with another color than black; a mask's background is 0")
    values = np.asarray(image)
    if values.ndim == 3:
        channels = values[..., : 1 if image.mode == "LA" else 3]  # without alpha
        if np.any(channels != channels[..., :1]):
            raise InputError(f"{path} has colors; a binary mask is black and white")
        values = channels[..., 0]
    if image.mode == "1":
        return values.astype(np.bool_)
    odd = values[(values > 1) & (values != 255)]
    if odd.size or (np.any(values == 1) and np.any(values == 255)):
        found = int(odd.flat[0]) if odd.size else "both 1 and 255"
        raise InputError(f"{path} holds the value {found}; a binary mask has 0 and 255 (or 0 and 1) alone")
    return np.asarray(values > 0)


def read_probability(path: Path) -> Labels:
    """Read a predicted binary mask uint8 `[H, W]`: the probability times 255 (8-bit gray), or 0 and 255 (1-bit gray).

    A palette of grays counts as gray, because AVSBench's own script saves its masks so.

    Raises:
        InputError: not such a file.
    """
    image, encoding = _open(path)
    if image.mode == "1":
        return np.asarray(image, dtype=np.uint8) * np.uint8(255)
    if image.mode == "P" and _has_gray_palette(image):
        return np.asarray(image.convert("L"))
    if encoding != "L":
        raise InputError(
            f"{path} is {_describe(encoding)}; a predicted mask is an 8-bit gray PNG (value / 255 is the probability, "
            "0 and 255 a hard mask)"
        )
    return np.asarray(image)


def read_gray(path: Path) -> Labels:
    """Read the brightness `[H, W]` of a mask of any encoding with 8 bits or fewer; above 0 is the object.

    Raises:
        InputError: not a PNG file.
    """
    image, _ = _open(path)
    return np.asarray(image.convert("L"))


def _has_gray_palette(image: Image.Image) -> bool:
    colors = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    used = np.unique(np.asarray(image))
    return bool(used[-1] < len(colors) and np.all(colors[used] == colors[used][:, :1]))


def read_index(path: Path, size: Size | None = None) -> Labels:
    """Read class indices `[H, W]` from an 8-bit gray PNG or the indices of a palette PNG.

    Args:
        path: the file.
        size: (height, width) to resize to, by the nearest pixel.

    Raises:
        InputError: not such a file, or an index above the last class.
    """
    return _read_index(path, *_open(path), size)


def _read_index(path: Path, image: Image.Image, encoding: str, size: Size | None = None) -> Labels:
    if encoding != "L" and image.mode != "P":
        raise InputError(
            f"{path} is {_describe(encoding)}; a label map is an 8-bit gray or palette PNG whose value is the class "
            "index"
        )
    top = np.asarray(image).max()
    if top >= len(CLASSES):
        raise InputError(f"{path} holds the value {top}; class indices go from 0 to {len(CLASSES) - 1}")
    return np.asarray(_resize_nearest(image, size))


def read_predicted_labels(path: Path) -> Labels:
    """Read a predicted label map `[H, W]` from indices (see `read_index`) or, in RGB, from colors of the palette.

    A color outside the palette is an error: smooth resizing makes such colors, and at some edges the colors of other
    classes.

    Raises:
        InputError: not such a file.
    """
    image, encoding = _open(path)
    if image.mode != "RGB":
        return _read_index(path, image, encoding)
    labels, unknown, color = _decode_colors(np.asarray(image))
    if unknown:
        raise InputError(
            f"{path} holds the color {color}, which is not in AVSBench-semantic's palette of 71 classes; write "
            "masks that were not resized smoothly, or class indices"
        )
    return labels


def read_palette(path: Path, size: Size | None = None) -> Labels:
    """Read class indices `[H, W]` from the colors of an RGB mask of AVSBench-semantic, resized to the nearest first.

    A few stray colors count as background with a warning, as in the published code.

    Raises:
        InputError: not such a file, or mostly colors outside the palette.
    """
    labels, unknown, color = _decode_colors(read_rgb(path, size))
    if 2 * unknown > unknown + np.count_nonzero(labels):
        raise InputError(f"{path} holds the color {color}, which is not in AVSBench-semantic's palette of 71 classes")
    if unknown:
        message = "%s: %d pixels with colors outside the palette, such as %s, are background"
        logger.warning(message, path, unknown, color)
    return labels


def read_rgb(path: Path, size: Size | None = None) -> npt.NDArray[np.uint8]:
    """Read the colors `[H, W, 3]` of a mask.

    Raises:
        InputError: not a PNG file with colors.
    """
    image, encoding = _open(path)
    if image.mode == "P":
        image = image.convert("RGB")
    if image.mode not in ("RGB", "RGBA"):
        raise InputError(f"{path} is {_describe(encoding)}; a mask in labels_rgb is an RGB PNG")
    return np.asarray(_resize_nearest(image, size))[..., :3]


def _decode_colors(rgb: npt.NDArray[np.uint8]) -> tuple[Labels, int, tuple[int, ...]]:
    """Class indices, the number of pixels with a color outside the palette, and the first such color."""
    labels = decode_palette(rgb)
    unknown = (labels == 0) & rgb.any(axis=-1)
    count = int(unknown.sum())
    return labels, count, tuple(rgb[unknown][0].tolist()) if count else ()


def decode_palette(rgb: npt.NDArray[np.uint8]) -> Labels:
    """Convert RGB colors uint8 `[..., 3]` to class indices uint8 `[...]`; unknown colors are background, 0."""
    key = rgb[..., 0].astype(np.intp)
    for channel in (1, 2):
        key <<= 8
        key |= rgb[..., channel]
    return _palette_table()[key]


@cache
def _palette_table() -> Labels:
    """The class index of every 24-bit color: one look-up a pixel instead of 71 comparisons."""
    table = np.zeros(1 << 24, dtype=np.uint8)
    for index, (red, green, blue) in enumerate(voc_palette()[: len(CLASSES)].tolist()):
        table[red << 16 | green << 8 | blue] = index
    table.flags.writeable = False
    return table


# ----------------------------------------------------------------------------------------------- sizes and resizing


def read_stack(
    paths: Sequence[Path], read: Callable[[Path], npt.NDArray[np.generic]], kind: str
) -> npt.NDArray[np.generic]:
    """Read the masks of a clip's frames as `[T, H, W]`; `kind` names them in the error for differing sizes."""
    masks = [read(path) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        check_size(path, mask.shape, masks[0].shape, f"the first {kind} of the clip has")
    return np.stack(masks)


def check_size(path: Path, size: tuple[int, ...], expected: tuple[int, ...], reference: str) -> None:
    """Raise InputError for a mask of another size (height, width) than `reference`, a phrase such as "S4 has"."""
    if size != expected:
        found, wanted = (f"{shape[1]} x {shape[0]}" for shape in (size, expected))
        raise InputError(f"{path} has {found} pixels where {reference} {wanted}")


def check_predicted_size(
    clip: BenchmarkClip, path: Path, size: tuple[int, int], expected: Callable[[], tuple[int, int]], reference: str
) -> None:
    """Raise InputError for a predicted mask of another size than `expected()`, unless `clip.resize`."""
    if clip.resize:
        return
    try:
        check_size(path, size, expected(), reference)
    except InputError as error:
        raise InputError(f"{error}; write masks of that size, or resize them (nearest pixel) with --resize") from None


def resize_mask(mask: npt.NDArray[Any], size: Size) -> npt.NDArray[Any]:
    """Resize a mask to (height, width) by the pixels nearest to the centers of the new pixels, as Pillow does."""
    if mask.shape == size:
        return mask
    return np.asarray(_resize_nearest(Image.fromarray(mask), size))


def interpolate_nearest(mask: npt.NDArray[Any], size: Size) -> npt.NDArray[Any]:
    """Resize a mask to (height, width) by the pixels floor(i * scale), as `torch.nn.functional.interpolate` does.

    These are up to half a new pixel above and to the left of the centers. The product is computed in float32, as in
    torch.
    """
    rows, columns = (
        np.floor(np.arange(new, dtype=np.float32) * (np.float32(old) / np.float32(new))).astype(np.intp)
        for old, new in zip(mask.shape, size, strict=True)
    )
    return np.asarray(mask[rows.clip(max=mask.shape[0] - 1)[:, None], columns.clip(max=mask.shape[1] - 1)])


def interpolate_linear(mask: Labels, size: Size) -> Labels:
    """Resize a mask uint8 to (height, width) bilinearly without smoothing, as OpenCV's `resize` does by default.

    The weights are 11-bit integers and the sums are rounded as in OpenCV, because a threshold at 0 depends on the last
    bit.
    """
    if mask.shape == size:
        return mask
    (top, bottom, rows), (left, right, columns) = (
        _linear_weights(old, new) for old, new in zip(mask.shape, size, strict=True)
    )
    lines = (mask[row] for row in (top, bottom))
    upper, lower = (line.take(left, 1) * columns[0] + line.take(right, 1) * columns[1] for line in lines)
    parts = ((rows[i][:, None] * (line >> 4)) >> 16 for i, line in enumerate((upper, lower)))
    return np.asarray((sum(parts) + 2) >> 2, dtype=np.uint8)


@lru_cache(maxsize=32)
def _linear_weights(old: int, new: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.int32]]:
    """The two old pixels of every new one, and their weights `[2, new]` in 1/2048."""
    place = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.intp)
    part = np.where((first < 0) | (first >= old - 1), np.float32(0), place - first.astype(np.float32))
    first = first.clip(0, old - 1)
    weights = np.rint(np.stack([np.float32(1) - part, part]) * np.float32(2048)).astype(np.int32)
    return first, np.minimum(first + 1, old - 1), weights


def _resize_nearest(image: Image.Image, size: Size | None) -> Image.Image:
    if size is None or image.size == (size[1], size[0]):
        return image
    return image.resize((size[1], size[0]), Image.Resampling.NEAREST)


# ----------------------------------------------------------------------------------------------------------- files


def _open(path: Path, load: bool = True) -> tuple[Image.Image, str]:
    """The image, and its encoding as Pillow names it: "L" or "L;4" (gray with 8 or 4 bits), "RGB", "P;2" and so on.

    Only Pillow's PNG reader is tried, and the size is checked before any pixel is decoded.
    """
    try:
        with Image.open(path, formats=("PNG",)) as image:
            encoding = str(image.tile[0][3])
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path} has {image.width} x {image.height} pixels; a mask has at most {MAX_PIXELS:,}")
            if ";16" in encoding:
                raise InputError(f"{path} has 16 bits per channel; a mask has 8")
            if load:
                image.load()
            return image, encoding
    except Image.DecompressionBombError:
        raise InputError(f"{path} has too many pixels; a mask has at most {MAX_PIXELS:,}") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a PNG file, or a truncated one") from None
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error) as error:
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"cannot read the mask {path}: {error.strerror}") from error
        raise InputError(f"{path} is a broken or truncated PNG file ({error})") from error


def _describe(encoding: str) -> str:
    mode, _, bits = encoding.partition(";")
    names = {"1": "gray", "L": "gray", "P": "palette", "LA": "gray with alpha", "RGBA": "RGB with alpha"}
    return f"a {bits or ('1' if mode == '1' else '8')}-bit {names.get(mode, mode)} PNG"


# ---------------------------------------------------------------------------------------------- masks in annotations


def coco_to_rle(code: Any, size: Size) -> RLE:
    """Convert a mask of a COCO or YouTube-VIS file: run lengths (a text, or plain counts) or polygons.

    Raises:
        ValueError, TypeError, KeyError, InputError: neither of them, or of another size.
    """
    from pycocotools import mask as coco

    if isinstance(code, list):
        made = _polygons(code, size)
    elif list(code["size"]) != list(size):
        raise ValueError(f"its size is {list(code['size'])}, not {list(size)}")
    elif isinstance(counts := code["counts"], str):
        check_rle(RLE(size, counts), "the mask")
        return RLE(size, counts)
    else:
        if any(not isinstance(count, int) or count < 0 for count in counts) or sum(counts) != math.prod(size):
            raise ValueError(f"its counts do not sum to {math.prod(size)}")
        made = coco.frPyObjects({"size": list(size), "counts": counts}, *size)
    return RLE(size, made["counts"].decode("ascii"))


def _polygons(rings: list[Any], size: Size) -> Any:
    """The union of polygons, given as lists of x and y."""
    from pycocotools import mask as coco

    far = 2 * max(size)  # the memory of pycocotools grows with the coordinates
    for ring in rings:
        if len(ring) < 6 or len(ring) % 2 or any(not -far <= float(value) <= far for value in ring):
            raise ValueError("a polygon is a list of x and y of at least three points within the frame")
    if not rings:
        return coco.encode(np.zeros(size, dtype=np.uint8, order="F"))
    return coco.merge(coco.frPyObjects(rings, *size))
