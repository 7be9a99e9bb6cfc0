"""COCO JSON, export and import: one image entry per sampled frame, one annotation per segment.

The folder has the layout of the COCO release, which CVAT and datumaro read: `annotations/instances_<split>.json` and
`images/<split>/`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NotRequired, TypedDict

from openavs import __version__
from openavs.errors import InputError
from openavs.exports.base import Categories, ExportItem, image_name, write_images
from openavs.exports.polygons import ConversionWarnings, mask_to_polygon
from openavs.exports.reading import (
    ImportedFrame,
    ImportedMask,
    canonical,
    checked_size,
    documents,
    expect,
    image_place,
    polygons_to_rle,
    read_json,
    runs_to_mask,
)
from openavs.exports.registry import ExportOptions, ExportSummary, MaskCode
from openavs.structures.masks import RLE, mask_to_rle, rle_runs, rle_to_mask
from openavs.structures.types import ClipResult, FrameResult


class CocoImage(TypedDict):
    """One frame, identified by `video`, `frame_index` and `time` in seconds."""

    id: int
    file_name: str
    width: int
    height: int
    video: str
    frame_index: int
    time: float


class CocoAttributes(TypedDict):
    """Fields that COCO lacks. A `track_id` belongs to one object of one clip."""

    score: float
    phrase: str
    track_id: NotRequired[int]


class CocoAnnotation(TypedDict):
    """One segment. `attributes` repeats the fields that CVAT and datumaro read from there only."""

    id: int
    image_id: int
    category_id: int
    segmentation: CocoMask
    bbox: list[float]
    area: int
    iscrowd: int
    score: float
    phrase: str
    track_id: NotRequired[int]
    attributes: CocoAttributes


class CocoDataset(TypedDict):
    """A whole COCO file."""

    info: dict[str, str]
    licenses: list[dict[str, str]]
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


def to_coco(results: Iterable[ClipResult], classes: Sequence[str] = ()) -> CocoDataset:
    """Convert results to COCO data, for `json.dump` or pycocotools.

    Args:
        results: the results.
        classes: names in the order of the category ids (from 1); other segments are left out. Empty: every label (else
            phrase) is a category, in order of first appearance.
    """
    categories, images, annotations = Categories(classes), [], []
    entries = _Entries(categories, MaskWriter("rle"))
    for result in results:
        for image, own in entries.of(result):
            images.append(image)
            annotations += own
    return {
        "info": _info(),
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": coco_categories(categories.names),
    }


def write(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `annotations/instances_<split>.json` and, with `images`, the frames under `images/<split>/`."""
    summary, entries = ExportSummary(), _Entries(options.categories, MaskWriter(options.masks))
    head = {"info": _info(), "licenses": []}
    (folder / "annotations").mkdir()
    path = folder / "annotations" / f"instances_{options.split}.json"
    with JsonListWriter(path, head, ("images", "annotations")) as file:
        for item in items:
            summary.clips += 1
            for image, annotations in entries.of(item.result):
                summary.frames += 1
                summary.segments += len(annotations)
                file.add("images", image)
                for annotation in annotations:
                    file.add("annotations", annotation)
            if options.images:
                write_images(folder / "images" / options.split, item)
        file.finish({"categories": coco_categories(options.categories.names)})
    summary.notes += entries.masks.notes()
    return summary


def _info() -> dict[str, str]:
    return {"description": f"exported by openavs {__version__}"}


class _Entries:
    """Makes the entries and counts their ids through all clips."""

    def __init__(self, categories: Categories, masks: MaskWriter) -> None:
        self._categories, self.masks = categories, masks
        self._images = self._annotations = 0
        self._tracks: dict[int, int] = {}  # of the clip

    def of(self, result: ClipResult) -> Iterator[tuple[CocoImage, list[CocoAnnotation]]]:
        """The frames of one clip and their annotations."""
        self._tracks.clear()  # the next clip's tracks are other things
        for frame in result.frames:
            self._images += 1
            yield _image(result, frame, self._images), list(self._annotate(frame))

    def _annotate(self, frame: FrameResult) -> Iterator[CocoAnnotation]:
        for segment in frame.segments:
            category, mask = self._categories.id(segment), self.masks(segment.mask)
            if category is None or mask is None:
                continue
            self._annotations += 1
            attributes: CocoAttributes = {"score": segment.score, "phrase": segment.phrase}
            entry: CocoAnnotation = {
                "id": self._annotations,
                "image_id": self._images,
                "category_id": category,
                "segmentation": mask,
                "bbox": coco_box(segment.mask),
                "area": segment.mask.area,
                "iscrowd": 0,
                "score": segment.score,
                "phrase": segment.phrase,
                "attributes": attributes,
            }
            if segment.track is not None:
                track = self._tracks.setdefault(segment.track, self._annotations)
                entry["track_id"] = attributes["track_id"] = track
            yield entry


def _image(result: ClipResult, frame: FrameResult, number: int) -> CocoImage:
    height, width = result.size
    return {
        "id": number,
        "file_name": image_name(result.clip, frame.index),
        "width": width,
        "height": height,
        "video": result.clip,
        "frame_index": frame.index,
        "time": frame.time,
    }


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
    """Return the mask as plain JSON data."""
    return {"size": list(rle.size), "counts": rle.counts}


class MaskWriter:
    """Encodes masks, and counts the losses of polygons."""

    def __init__(self, code: MaskCode) -> None:
        self._code, self._warnings = code, ConversionWarnings()

    def __call__(self, rle: RLE) -> CocoMask | None:
        """Return the mask as plain JSON data; None for the polygon of an empty mask."""
        if self._code == "rle":
            return coco_rle(rle)
        if self._code == "counts":
            return {"size": list(rle.size), "counts": rle_runs(rle, "the mask")}
        polygon = mask_to_polygon(rle_to_mask(rle), self._warnings)
        return None if polygon is None else [[float(value) for value in polygon.ravel()]]

    def notes(self) -> list[str]:
        """Return a sentence about the losses of polygons; an empty list for other encodings."""
        return [f"polygons are lossy: {self._warnings}"] if self._code == "polygons" else []


def coco_box(rle: RLE) -> list[float]:
    """Return x, y, width and height of the box around a mask (not the detector's box, which may be larger)."""
    x0, y0, x1, y1 = rle.box
    return [x0, y0, x1 - x0, y1 - y0]


def coco_categories(names: Iterable[str]) -> list[CocoCategory]:
    """Return the categories in the order of their ids."""
    return [{"id": place, "name": name, "supercategory": ""} for place, name in enumerate(names, start=1)]


class JsonListWriter:
    """Writer of a JSON object of several lists that grow at the same time, with bounded memory.

    Each list goes to a temporary file; `finish` concatenates them.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], lists: Sequence[str]) -> None:
        self._path, self._head = path, head
        self._lists = {name: tempfile.TemporaryFile(dir=path.parent) for name in lists}  # noqa: SIM115 - see close
        self._empty = dict.fromkeys(lists, True)

    def add(self, name: str, entry: object) -> None:
        """Append an entry to a list."""
        text = json.dumps(entry, separators=(",", ":"), allow_nan=False)
        self._lists[name].write(("" if self._empty[name] else ",\n").encode() + text.encode("ascii"))
        self._empty[name] = False

    def finish(self, tail: Mapping[str, Any]) -> None:
        """Write the file: the head, the lists, the tail."""
        with self._path.open("wb") as file:
            file.write(b"{" + b"".join(_entry(key, value) + b",\n" for key, value in self._head.items()))
            for name, content in self._lists.items():
                content.seek(0)
                file.write(f'"{name}": [\n'.encode())
                shutil.copyfileobj(content, file)
                file.write(b"],\n")
            file.write(b",\n".join(_entry(key, value) for key, value in tail.items()) + b"}\n")

    def __enter__(self) -> JsonListWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for content in self._lists.values():
            content.close()


def _entry(key: str, value: object) -> bytes:
    return f'"{key}": {json.dumps(value, allow_nan=False)}'.encode("ascii")


# ------------------------------------------------------------------------------------------------------ the way back


def read(path: Path) -> Iterator[ImportedFrame]:
    """Read COCO JSON of this export or of another tool that keeps the names of its images.

    Args:
        path: a JSON file, or a zip or folder of the COCO layout.

    Raises:
        InputError: invalid, or an annotation without a mask.
    """
    for names, content in documents(path, ".json"):
        data = read_json(content, path)
        where = f"{path} ({names[0]})"
        categories = {
            expect(own, "id", int, f"{where}: a category"): expect(own, "name", str, f"{where}: a category")
            for own in expect(data, "categories", list, where)
        }
        masks: dict[int, list[tuple[Any, str]]] = {}
        for place, annotation in enumerate(expect(data, "annotations", list, where)):
            own = f"{where}: annotation {place}"
            masks.setdefault(expect(annotation, "image_id", int, own), []).append((annotation, own))
        for place, image in enumerate(expect(data, "images", list, where)):
            own = f"{where}: image {place}"
            size = checked_size(expect(image, "height", int, own), expect(image, "width", int, own), own)
            clips, index = image_place(expect(image, "file_name", str, own))
            found = masks.pop(expect(image, "id", int, own), [])
            read_masks = tuple(_read_mask(annotation, categories, size, at) for annotation, at in found)
            yield ImportedFrame(clips, index, size, read_masks, frozenset(categories.values()))
        if masks:
            raise InputError(f"{where} has annotations of the image {next(iter(masks))}, which it does not list")


def _read_mask(annotation: Any, categories: Mapping[int, str], size: tuple[int, int], where: str) -> ImportedMask:
    category = expect(annotation, "category_id", int, where)
    if category not in categories:
        raise InputError(f"{where} has the category {category}, which the file does not list")
    attributes = expect(annotation, "attributes", dict, where, {})
    track = annotation.get("track_id", attributes.get("track_id"))
    number = str(track) if isinstance(track, int | str) and track != "" else None
    code = expect(annotation, "segmentation", (list, dict), where)
    if isinstance(code, list):
        if not code or not all(isinstance(p, list) and all(type(v) in (int, float) for v in p) for p in code):
            raise InputError(f"{where} has no mask: its segmentation is not a list of polygons; draw masks or polygons")
        return ImportedMask(polygons_to_rle(code, size, where), categories[category], number, polygon=True)
    if expect(code, "size", list, where) != list(size):
        raise InputError(f"{where} has a mask of the size {code['size']!r:.40} in an image of {list(size)}")
    counts = expect(code, "counts", (str, list), where)
    if isinstance(counts, str):
        return ImportedMask(canonical(RLE(size, counts), where), categories[category], number)
    by_columns = runs_to_mask(counts, (size[1], size[0]), where).T
    return ImportedMask(mask_to_rle(by_columns), categories[category], number)
