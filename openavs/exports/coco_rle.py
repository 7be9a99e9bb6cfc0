"""What the COCO family of formats shares: run-length codes, boxes from masks, JSON written list by list."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

from openavs.exports.polygons import ConversionWarnings, mask_to_polygon
from openavs.exports.registry import MaskCode
from openavs.structures.masks import rle_runs
from openavs.structures.types import RLE, rle_to_mask


class CocoRLE(TypedDict):
    """A mask as COCO's compressed run-length code: size (height, width), column-major counts as text."""

    size: list[int]
    counts: str


class CocoCounts(TypedDict):
    """A mask as COCO's uncompressed run-length code: counts as numbers, background first."""

    size: list[int]
    counts: list[int]


CocoMask = CocoRLE | CocoCounts | list[list[float]]
"""A mask as run-lengths or as one polygon `[[x, y, x, y, ...]]` in pixels."""


class CocoCategory(TypedDict):
    """A category; ids begin with 1."""

    id: int
    name: str
    supercategory: str


def coco_rle(rle: RLE) -> CocoRLE:
    """The mask as plain JSON data."""
    return {"size": list(rle.size), "counts": rle.counts}


class MaskWriter:
    """Writes masks in one code, and counts what polygons lose."""

    def __init__(self, code: MaskCode) -> None:
        self._code, self._losses = code, ConversionWarnings()

    def __call__(self, rle: RLE) -> CocoMask | None:
        """The mask as plain JSON data; None for an empty mask as a polygon."""
        if self._code == "rle":
            return coco_rle(rle)
        if self._code == "counts":
            return {"size": list(rle.size), "counts": rle_runs(rle, "the mask")}
        polygon = mask_to_polygon(rle_to_mask(rle), self._losses)
        return None if polygon is None else [[float(value) for value in polygon.ravel()]]

    def notes(self) -> list[str]:
        """A sentence on what polygons lose, if masks are written as polygons."""
        return [f"polygons are lossy: {self._losses}"] if self._code == "polygons" else []


def coco_box(rle: RLE) -> list[float]:
    """x, y, width and height of the box around a mask (not the detector's box, which may be wider)."""
    from pycocotools import mask as coco

    return [float(value) for value in coco.toBbox({"size": list(rle.size), "counts": rle.counts.encode("ascii")})]


def merged(codes: Sequence[RLE]) -> RLE:
    """The union of masks of one size."""
    from pycocotools import mask as coco

    if len(codes) == 1:
        return codes[0]
    union = coco.merge([{"size": list(code.size), "counts": code.counts.encode("ascii")} for code in codes])
    return RLE(codes[0].size, union["counts"].decode("ascii"))


def coco_categories(names: Iterable[str]) -> list[CocoCategory]:
    """The categories in the order of their ids."""
    return [{"id": place, "name": name, "supercategory": ""} for place, name in enumerate(names, start=1)]


class JsonListWriter:
    """A JSON object of some lists that grow at the same time, without holding them: each goes to a file of its own
    until the end puts them into one."""

    def __init__(self, path: Path, head: Mapping[str, Any], lists: Sequence[str]) -> None:
        self._path, self._head = path, head
        self._spools = {name: tempfile.TemporaryFile(dir=path.parent) for name in lists}  # noqa: SIM115 - see close
        self._empty = dict.fromkeys(lists, True)

    def add(self, name: str, entry: object) -> None:
        """Appends an entry to a list."""
        text = json.dumps(entry, separators=(",", ":"), allow_nan=False)
        self._spools[name].write(("" if self._empty[name] else ",\n").encode() + text.encode("ascii"))
        self._empty[name] = False

    def finish(self, tail: Mapping[str, Any]) -> None:
        """Writes the file: the head, the lists, the tail."""
        with self._path.open("wb") as file:
            file.write(b"{" + b"".join(_entry(key, value) + b",\n" for key, value in self._head.items()))
            for name, spool in self._spools.items():
                spool.seek(0)
                file.write(f'"{name}": [\n'.encode())
                shutil.copyfileobj(spool, file)
                file.write(b"],\n")
            file.write(b",\n".join(_entry(key, value) for key, value in tail.items()) + b"}\n")

    def __enter__(self) -> JsonListWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for spool in self._spools.values():
            spool.close()


def _entry(key: str, value: object) -> bytes:
    return f'"{key}": {json.dumps(value, allow_nan=False)}'.encode("ascii")
