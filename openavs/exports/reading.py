"""Strict reading of the files of other tools: bounded sizes, checked masks, and the frames that importers compare."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from openavs.errors import InputError
from openavs.exports.registry import MARK
from openavs.structures.masks import MAX_PIXELS, RLE, check_rle, mask_to_rle, rle_to_mask
from openavs.structures.types import BoolMask
from openavs.utils.fs import read_regular
from openavs.utils.serialization import parse_json

MAX_BYTES = 1 << 28  # of the files of an import; 256 MiB hold about 100,000 masks
MAX_FILES = 10_000
MAX_FRAMES = 1_000_000


@dataclass(frozen=True)
class ImportedMask:
    """One mask of a file.

    Attributes:
        mask: the mask.
        name: its category.
        number: the same for one object in all frames of a clip; None without one.
        polygon: whether it was a polygon; an unchanged polygon is not an exact mask.
    """

    mask: RLE
    name: str
    number: Hashable = None
    polygon: bool = False


@dataclass(frozen=True)
class ImportedFrame:
    """One frame of a file with all of its masks.

    Attributes:
        clips: names that the file gives the clip; the first that the results have counts.
        index: index among the sampled frames.
        size: (height, width) in pixels; None if the file does not have it.
        masks: the masks; none if a person removed all.
        names: the categories of the file; None for any. Segments of other categories were not exported.
        author: the person, if the file names one.
        at: date and time of the change in UTC, ISO 8601, if the file has it.
    """

    clips: tuple[str, ...]
    index: int
    size: tuple[int, int] | None
    masks: tuple[ImportedMask, ...]
    names: frozenset[str] | None = None
    author: str | None = None
    at: str | None = None


def documents(path: Path, suffix: str) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """Yield the files of a suffix: names of each (its own without suffix, its folder's, the path's) and its content.

    Args:
        path: one file, a zip archive or a folder.
        suffix: `.json` or `.xml`. Of a zip or folder `export.json`, the record of an export, and `labels.json` are left
            out.

    Raises:
        InputError: unreadable, too large, or no such file.
    """
    left, count = MAX_BYTES, 0
    for name, size, read in _zipped(path) if path.suffix.lower() == ".zip" else _plain(path):
        place = PurePosixPath(name)
        if place.suffix.lower() != suffix or (place.name in (MARK, "labels.json") and name != path.as_posix()):
            continue
        left, count = left - size, count + 1
        if left < 0 or count > MAX_FILES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB, the limit of an import; import it in parts")
        yield (place.stem, place.parent.name, path.stem), read()
    if not count:
        raise InputError(f"{path} has no {suffix} file; give the file that the tool exported")


_Entry = tuple[str, int, Callable[[], bytes]]


def _plain(path: Path) -> Iterator[_Entry]:
    found = [path] if not path.is_dir() else sorted(own for own in path.rglob("*") if own.is_file())
    for own in found:
        yield own.as_posix(), own.stat().st_size, partial(read_regular, own)


def _zipped(path: Path) -> Iterator[_Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                yield entry.filename, entry.file_size, partial(_unzip, archive, entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path} is not a zip file that can be read: {error}") from error


def _unzip(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as file:
        return file.read(entry.file_size)  # never more than its directory states


def read_json(data: bytes, path: Path) -> Any:
    """Parse the content of a file; InputError if it is not JSON."""
    try:
        return parse_json(data)
    except ValueError as error:
        raise InputError(f"{path} is not a JSON file: {error!s:.200}") from error


def expect(data: Any, key: str, kind: type | tuple[type, ...], where: str, default: Any = None) -> Any:
    """Return `data[key]` of a type; InputError names `where` if `data` lacks it and there is no default."""
    value = data.get(key, default) if isinstance(data, dict) else None
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if value is None and default is None and type(None) not in kinds:
        raise InputError(f"{where} lacks {key!r}")
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise InputError(f"{where} has the invalid {key} {value!r:.60}")
    return value


def checked_size(height: int, width: int, where: str) -> tuple[int, int]:
    """Return (height, width); InputError for none or a huge one."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise InputError(f"{where} has {width} x {height} pixels")
    return height, width


def image_place(name: str) -> tuple[tuple[str, ...], int]:
    """Return the folders that may name the clip, and the index, of an image `<clip>/<frame>.jpg`.

    Raises:
        InputError: another name.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    digits = path.stem.removeprefix("frame_")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 9):
        raise InputError(f"the image {name!r:.80} is not named <clip>/<frame>.jpg, as the export names it")
    return tuple(folder.name for folder in (path.parent, path.parent.parent) if folder.name), int(digits)


def runs_to_mask(runs: Sequence[int], size: tuple[int, int], where: str) -> BoolMask:
    """Return the mask `[H, W]` of run lengths by rows, background first.

    Raises:
        InputError: the runs do not fill the mask.
    """
    if any(type(run) is not int or run < 0 for run in runs) or sum(runs) != size[0] * size[1]:
        raise InputError(f"{where}: the runs do not fill a mask of {size[1]} x {size[0]} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, np.asarray(runs, dtype=np.int64)).reshape(size)


def polygons_to_rle(polygons: Sequence[Sequence[float]], size: tuple[int, int], where: str) -> RLE:
    """Return the mask of polygons `[x, y, x, y, ...]` in pixels, as pycocotools fills them.

    Raises:
        InputError: not three points, or a point outside the frame.
    """
    from pycocotools import mask as coco

    exact = []
    for polygon in polygons:
        numbers = np.asarray(polygon, dtype=np.float64)
        if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2:
            raise InputError(f"{where} has a polygon of less than three points")
        points = numbers.reshape(-1, 2)
        if not ((points >= -1) & (points <= np.array(size[::-1]) + 1)).all():  # also False for NaN
            raise InputError(f"{where} has a polygon outside its frame of {size[1]} x {size[0]} pixels")
        exact.append(np.round(points.clip(0, size[::-1]), 2).ravel().tolist())
    code = coco.merge(coco.frPyObjects(exact, *size))
    return RLE(size, code["counts"].decode("ascii"))


def canonical(rle: RLE, where: str) -> RLE:
    """Return the code that pycocotools writes for the mask of a checked foreign code."""
    check_rle(rle, where)
    return mask_to_rle(rle_to_mask(rle))
