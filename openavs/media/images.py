"""Image files as frames: a folder of images, or a single one; and frames as pictures for models."""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from openavs.errors import InputError
from openavs.media.limits import DEFAULT_LIMITS, MediaLimits
from openavs.media.probe import check_file, reading
from openavs.structures.types import Frame, ImageArray
from openavs.utils.fs import BoundedFile

logger = logging.getLogger(__name__)
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
# Raised by Pillow's readers for damaged files.
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error, zlib.error)
ORIENTATION = 0x0112  # the EXIF tag; values 5 to 8 swap height and width


@dataclass(frozen=True)
class ImageFrames:
    """`FrameSource` of image files, one per planned time; a path may occur several times."""

    paths: tuple[Path, ...]
    times: tuple[float, ...]
    limits: MediaLimits = DEFAULT_LIMITS
    strict: bool = False

    def __call__(self, wanted: frozenset[int] | None = None) -> Iterator[Frame]:
        """Yield the requested images in order; a damaged one is skipped with a warning (`strict`: InputError)."""
        held: Path | None = None
        image: ImageArray | None = None
        for index, (path, time) in enumerate(zip(self.paths, self.times, strict=True)):
            if wanted is not None and index not in wanted:
                continue
            if path != held:
                held, image = path, None
                image = self._read(path)
            if image is not None:
                yield Frame(index, time, image)

    def _read(self, path: Path) -> ImageArray | None:
        try:
            return read_image(path, self.limits)
        except InputError as error:
            if self.strict:
                raise
            logger.warning("%s", error)
            return None


def is_image(path: Path) -> bool:
    """Return whether a file's name is that of an image."""
    return path.suffix.lower() in SUFFIXES


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder in natural order (frame2 before frame10).

    Raises:
        InputError: there are none.
    """
    with reading(folder):
        paths = sorted((p for p in folder.iterdir() if is_image(p) and p.name[0] != "."), key=_natural)
    if not paths:
        raise InputError(
            f"the folder {folder} has no images (png, jpg, bmp, webp) and no videos (mp4, mov, mkv, webm, avi ...); "
            "give one that does, or name the files"
        )
    return paths


def common_size(paths: Sequence[Path], limits: MediaLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Return the common (height, width) of all images, from their headers.

    Raises:
        InputError: one differs.
    """
    first = image_size(paths[0], limits)
    for path in paths[1:]:
        size = image_size(path, limits)
        if size != first:
            raise InputError(
                f"{path.name} is {size[1]} x {size[0]} but {paths[0].name} is {first[1]} x {first[0]}; "
                "resize the images of a folder to one size, or give them one by one"
            )
    return first


def image_size(path: Path, limits: MediaLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Return the upright (height, width) of an image, from its header."""
    with _opened(path, limits) as picture:
        turned = _orientation(picture) >= 5
        return (picture.width, picture.height) if turned else (picture.height, picture.width)


def read_image(path: Path, limits: MediaLimits = DEFAULT_LIMITS) -> ImageArray:
    """Read an upright RGB image, uint8 `[H, W, 3]`."""
    with _opened(path, limits) as picture:
        try:
            upright = ImageOps.exif_transpose(picture) if _orientation(picture) != 1 else picture
            if upright.mode.startswith("I"):  # 16-bit gray: keep the upper byte; Pillow would clip
                gray = (np.clip(np.asarray(upright), 0, 0xFFFF) >> 8).astype(np.uint8)
                return np.repeat(gray[..., None], 3, axis=2)
            return np.array(upright.convert("RGB"), dtype=np.uint8)
        except DAMAGE as error:
            raise InputError(f"the image {path} is damaged; repair or remove it") from error


@contextmanager
def _opened(path: Path, limits: MediaLimits) -> Iterator[Image.Image]:
    with reading(path):
        check_file(path)
        opened = BoundedFile(path)
    with opened as file:
        try:
            picture = Image.open(file, formats=FORMATS)
        except (*DAMAGE, Image.DecompressionBombError) as error:
            raise InputError(f"{path} cannot be read as a png, jpg, bmp or webp image; check the file") from error
        if picture.width * picture.height > limits.max_pixels:
            raise InputError(
                f"{path} has {picture.width} x {picture.height} pixels, over the limit of {limits.max_pixels}; "
                "scale it down or raise Limits.max_pixels"
            )
        yield picture


def _orientation(picture: Image.Image) -> int:
    """Return the EXIF orientation 1 to 8; for a png only if it precedes the pixels, since more would decode it."""
    if picture.format == "PNG" and "exif" not in picture.info:
        return 1
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except DAMAGE:
        return 1  # damaged EXIF data; the image itself may be intact


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts] + [(0, 0, path.name)]


_MIN_SIDE, _MAX_ASPECT = 32, 16  # processors refuse smaller sides and longer strips; these are padded with black


def fit_picture(picture: ImageArray, max_pixels: int) -> ImageArray:
    """Return a picture of at most `max_pixels`, scaled down if it is larger, and padded if a side is too short."""
    height, width = picture.shape[:2]
    scale = min(1.0, (max_pixels / (height * width)) ** 0.5)
    size = max(1, int(width * scale)), max(1, int(height * scale))
    scaled = picture
    if size != (width, height):
        scaled = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    least = max(_MIN_SIDE, -(-max(size) // _MAX_ASPECT))
    missing = [max(0, least - side) for side in scaled.shape[:2]]
    return np.pad(scaled, ((0, missing[0]), (0, missing[1]), (0, 0))) if any(missing) else scaled


def encode_jpeg(picture: ImageArray, max_bytes: int) -> bytes:
    """Return a picture as a JPEG file of at most `max_bytes`, at lower quality and then smaller where necessary.

    Raises:
        InputError: not even 32 x 32 pixels fit.
    """
    image = Image.fromarray(picture)
    while True:
        for quality in (90, 75, 50):
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=quality)
            if buffer.tell() <= max_bytes:
                return buffer.getvalue()
        if min(image.size) <= _MIN_SIDE:
            raise InputError(f"a picture does not fit into {max_bytes} bytes; raise the limit")
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
