"""CVAT for video 1.1: per clip an XML file of its sampled frames, and the way back.

CVAT has no tracks of masks: it writes every mask as a track of one frame, and reads the first shape of such a track.
The masks of this export are written in the same way, with the number of the object as attribute. Polygons are tracks.
Format: `cvat/apps/dataset_manager/formats/cvat.py` of CVAT.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from openavs.errors import InputError
from openavs.exports.base import ExportItem, write_images
from openavs.exports.polygons import ConversionWarnings, mask_to_polygon
from openavs.exports.reading import (
    MAX_FRAMES,
    ImportedFrame,
    ImportedMask,
    checked_size,
    documents,
    image_place,
    polygons_to_rle,
    runs_to_mask,
)
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.structures.masks import mask_to_rle, rle_to_mask
from openavs.structures.types import BoolMask, ClipResult, FrameResult, Segment
from openavs.utils.text import printable
from openavs.visualization.colors import DISTINCT

ATTRIBUTES = ("phrase", "score", "track")
MAX_DEPTH = 12
Element = ElementTree.Element


def write(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `<clip>/annotations.xml` of every item, `labels.json` and, with `images`, `<clip>/images/`."""
    summary, losses = ExportSummary(), ConversionWarnings()
    for item in items:
        clip = item.result.clip
        document = _Document(item.result, options, losses)
        (folder / clip).mkdir()
        (folder / clip / "annotations.xml").write_bytes(document.bytes())
        if options.images:
            write_images(folder, item, _image_name)
        summary.clips += 1
        summary.frames += len(item.result.frames)
        summary.segments += document.segments
    labels = [_label(name, place) for place, name in enumerate(options.categories.names)]
    (folder / "labels.json").write_text(json.dumps(labels, indent=1) + "\n", encoding="ascii")
    if options.masks == "polygons":
        summary.notes.append(f"polygons are lossy: {losses}")
    return summary


def _image_name(name: str) -> str:
    clip, _, file = name.rpartition("/")
    return f"{clip}/images/{file}"


def _label(name: str, place: int) -> dict[str, Any]:
    """Return a label as CVAT's raw editor of labels takes it."""
    text = {"input_type": "text", "mutable": True, "values": [""], "default_value": ""}
    color = "#{:02x}{:02x}{:02x}".format(*DISTINCT[place % len(DISTINCT)])
    attributes = [{"name": attribute, **text} for attribute in ATTRIBUTES]
    return {"name": printable(name), "color": color, "type": "any", "attributes": attributes}


class _Document:
    """The XML of one clip."""

    def __init__(self, result: ClipResult, options: ExportOptions, losses: ConversionWarnings) -> None:
        self._result, self._categories, self._losses = result, options.categories, losses
        self._stop = max((frame.index for frame in result.frames), default=0)
        self.segments = 0
        self._root = Element("annotations")
        _add(self._root, "version", "1.1")
        found = [(frame, s, self._name(s)) for frame in result.frames for s in frame.segments if s.mask.area]
        self._meta()
        if options.masks == "polygons":
            self._polygons(found)
        else:
            for frame, segment, name in found:
                self._mask(frame, segment, name)

    def bytes(self) -> bytes:
        """Return the file's content."""
        ElementTree.indent(self._root)
        return bytes(ElementTree.tostring(self._root, encoding="utf-8", xml_declaration=True))

    def _name(self, segment: Segment) -> str:
        place = self._categories.id(segment)
        assert place is not None, "segments without a category are filtered out"
        return printable(self._categories.names[place - 1])

    def _meta(self) -> None:
        height, width = self._result.size
        task = _add(_add(self._root, "meta"), "task")
        for key, value in (
            ("id", "1"),
            ("name", self._result.clip),
            ("size", str(self._stop + 1)),
            ("mode", "interpolation"),
            ("overlap", "0"),
            ("start_frame", "0"),
            ("stop_frame", str(self._stop)),
            ("frame_filter", ""),
        ):
            _add(task, key, value)
        labels = _add(task, "labels")
        for place, name in enumerate(self._categories.names):
            about = _label(name, place)
            label = _add(labels, "label")
            for key in ("name", "color", "type"):
                _add(label, key, about[key])
            attributes = _add(label, "attributes")
            for own in about["attributes"]:
                attribute = _add(attributes, "attribute")
                for key, value in (("name", own["name"]), ("mutable", "True"), ("input_type", "text")):
                    _add(attribute, key, value)
                _add(attribute, "default_value", "")
                _add(attribute, "values", "")
        size = _add(task, "original_size")
        _add(size, "width", str(width))
        _add(size, "height", str(height))

    def _mask(self, frame: FrameResult, segment: Segment, name: str) -> None:
        """Add a mask as CVAT writes one: a track of a key frame that ends at the next frame."""
        track = self._track(name)
        runs, (left, top, width, height) = crop_runs(rle_to_mask(segment.mask))
        box = {"left": left, "top": top, "width": width, "height": height}
        code = {"rle": ", ".join(map(str, runs)), **{key: str(value) for key, value in box.items()}}
        self._shape(track, "mask", frame.index, code, segment)
        if frame.index < self._stop:
            self._shape(track, "mask", frame.index + 1, code, segment, outside=True)
        self.segments += 1

    def _polygons(self, found: Sequence[tuple[FrameResult, Segment, str]]) -> None:
        """Add a track of polygons for every object: a key frame in each of its frames, and `outside` after them."""
        objects: dict[tuple[object, ...], list[tuple[FrameResult, Segment, str]]] = {}
        for place, own in enumerate(found):
            number = own[1].track
            objects.setdefault((own[2], number) if number is not None else (place,), []).append(own)
        for shapes in objects.values():
            track = self._track(shapes[0][2])
            indices = {frame.index for frame, _, _ in shapes}
            for frame, segment, _ in shapes:
                polygon = mask_to_polygon(rle_to_mask(segment.mask), self._losses)
                assert polygon is not None, "empty masks are left out"
                code = {"points": ";".join(f"{x:.2f},{y:.2f}" for x, y in polygon.tolist())}
                self._shape(track, "polygon", frame.index, code, segment)
                if frame.index < self._stop and frame.index + 1 not in indices:
                    self._shape(track, "polygon", frame.index + 1, code, segment, outside=True)
                self.segments += 1

    def _track(self, name: str) -> Element:
        number = len(self._root) - 2  # after version and meta
        return ElementTree.SubElement(self._root, "track", {"id": str(number), "label": name, "source": "auto"})

    def _shape(
        self, track: Element, kind: str, frame: int, code: dict[str, str], segment: Segment, *, outside: bool = False
    ) -> None:
        flags = {"frame": str(frame), "keyframe": "1", "outside": str(int(outside)), "occluded": "0"}
        shape = ElementTree.SubElement(track, kind, {**flags, **code, "z_order": "0"})
        values = {"phrase": printable(segment.phrase), "score": f"{segment.score:.6g}"}
        if segment.track is not None:
            values["track"] = str(segment.track)
        for key, value in values.items():
            _add(shape, "attribute", value).set("name", key)


def _add(parent: Element, tag: str, text: str | None = None) -> Element:
    child = ElementTree.SubElement(parent, tag)
    child.text = text
    return child


def crop_runs(mask: BoolMask) -> tuple[list[int], tuple[int, int, int, int]]:
    """Return CVAT's run lengths of a mask: by rows within its box, background first; and left, top, width, height."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    crop = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    flat = crop.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(edges, prepend=0, append=flat.size).tolist()
    return [0, *runs] if flat[0] else runs, (left, top, crop.shape[1], crop.shape[0])


# ------------------------------------------------------------------------------------------------------ the way back


@dataclass
class _Task:
    """A task of the file: the names of its clip, the size of its frames, and the frames that it covers."""

    clips: tuple[str, ...]
    size: tuple[int, int] | None = None
    frames: range = range(0)


@dataclass
class _Found:
    """The masks of one frame."""

    clips: tuple[str, ...]
    index: int
    size: tuple[int, int] | None
    masks: list[ImportedMask] = field(default_factory=list)


def read(path: Path) -> Iterator[ImportedFrame]:
    """Read `CVAT for video 1.1` or `CVAT for images 1.1`: XML files, a zip or a folder.

    The clip of a video is the task of its name, or the file's or folder's.

    Raises:
        InputError: invalid, or shapes without a mask, such as boxes.
    """
    for names, content in documents(path, ".xml"):
        yield from _read_document(_parse(content, path), names, path)


def _read_document(root: Element, names: tuple[str, ...], path: Path) -> Iterator[ImportedFrame]:
    where = str(path)
    if root.tag != "annotations":
        raise InputError(f"{where} is not an XML file of CVAT; export as 'CVAT for video 1.1'")
    meta = root.find("meta")
    labels = frozenset(own.text or "" for own in root.iterfind("meta//label/name"))
    tasks = {
        _text(own, "id"): _task(own, names, where) for own in root.iterfind("meta//*") if own.tag in ("task", "job")
    }
    frames: dict[tuple[str, int], _Found] = {}
    if root.find("image") is None:
        for key, task in tasks.items():
            frames |= {(key, index): _Found(task.clips, index, task.size) for index in task.frames}
    named = next(iter(tasks.values())).clips if len(tasks) == 1 else names
    for image in root.iterfind("image"):
        folders, index = image_place(_attribute(image, "name", where))
        clips = (*folders, *named)
        size = checked_size(_number(image, "height", where), _number(image, "width", where), where)
        found = frames.setdefault((clips[0], index), _Found(clips, index, size))
        for shape in image:
            _add_mask(found, shape, _attribute(shape, "label", where), None, f"{where}: image {clips[0]}/{index}")
    for track in root.iterfind("track"):
        label, number = _attribute(track, "label", where), _attribute(track, "id", where)
        key = track.get("task_id") or next(iter(tasks), "")
        if key not in tasks:
            raise InputError(f"{where}: track {number} belongs to no task of the file")
        for shape in track:
            if shape.get("outside") != "1":
                index = _number(shape, "frame", where)
                found = frames.setdefault((key, index), _Found(tasks[key].clips, index, tasks[key].size))
                _add_mask(found, shape, label, number, f"{where}: track {number}, frame {index}")
    if meta is None or not frames:
        raise InputError(f"{where} has no frames; export the task as 'CVAT for video 1.1'")
    for found in frames.values():
        yield ImportedFrame(found.clips, found.index, found.size, tuple(found.masks), labels)


def _task(element: Element, names: tuple[str, ...], where: str) -> _Task:
    task = _Task(tuple(name for name in (_text(element, "name"), *names) if name))
    if element.find("original_size") is not None:
        size = [_whole(_text(element, f"original_size/{key}"), key, where) for key in ("height", "width")]
        task.size = checked_size(size[0], size[1], where)
    if element.find("stop_frame") is not None:
        start, stop = (_whole(_text(element, key), key, where) for key in ("start_frame", "stop_frame"))
        step = _whole(_text(element, "frame_filter").removeprefix("step=") or "1", "frame_filter", where)
        if stop - start >= MAX_FRAMES or step < 1:
            raise InputError(f"{where} has the frames {start} to {stop} in steps of {step}")
        task.frames = range(start, stop + 1, step)
    return task


def _add_mask(found: _Found, shape: Element, label: str, number: str | None, where: str) -> None:
    if shape.tag == "tag":
        return
    if found.size is None:
        raise InputError(f"{where} has no size; export the task with CVAT again")
    values = {own.get("name"): own.text or "" for own in shape.iterfind("attribute")}
    drawn = values.get("track") or None  # not the number of the element: each mask is one of its own
    if shape.tag == "mask":
        left, top, width, height = (_number(shape, key, where) for key in ("left", "top", "width", "height"))
        if width < 1 or height < 1 or left + width > found.size[1] or top + height > found.size[0]:
            raise InputError(f"{where} has a mask outside its frame of {found.size[1]} x {found.size[0]} pixels")
        runs = [_whole(run.strip(), "rle", where) for run in _attribute(shape, "rle", where).split(",")]
        mask = np.zeros(found.size, dtype=np.bool_)
        mask[top : top + height, left : left + width] = runs_to_mask(runs, (height, width), where)
        found.masks.append(ImportedMask(mask_to_rle(mask), label, drawn))
    elif shape.tag == "polygon":
        pairs = [pair.split(",") for pair in _attribute(shape, "points", where).split(";")]
        try:
            points = [float(value) for pair in pairs for value in pair]
        except ValueError:
            raise InputError(f"{where} has points that are not numbers") from None
        found.masks.append(
            ImportedMask(polygons_to_rle([points], found.size, where), label, drawn or number, polygon=True)
        )
    else:
        raise InputError(f"{where} is a {shape.tag}, which has no mask; draw masks or polygons")


def _attribute(element: Element, name: str, where: str) -> str:
    value = element.get(name)
    if value is None:
        raise InputError(f"{where}: <{element.tag}> lacks {name}")
    return value


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(element: Element, name: str, where: str) -> int:
    return _whole(_attribute(element, name, where), name, where)


def _whole(text: str, name: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise InputError(f"{where} has the invalid {name} {text!r:.40}")
    return int(text)


def _parse(content: bytes, path: Path) -> Element:
    """Parse XML without a document type, hence without entities; the depth of elements is limited."""
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise InputError(f"{path} has elements nested more than {MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise InputError(f"{path} has a document type, which CVAT does not write")

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise InputError(f"{path} is not XML: {error}") from error
    return builder.close()
