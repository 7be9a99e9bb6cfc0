"""Label Studio: one task per clip with its frames and its sound, masks as brush strokes, events as spans; and back.

A brush mask is the run-length code of the library rle-pack over the RGBA bytes of its image, by rows; the alpha channel
is the mask. Format: `label_studio_sdk.converter.brush`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import numpy as np

from openavs import __version__
from openavs.errors import InputError
from openavs.exports.base import Categories, ExportItem, image_name, write_images
from openavs.exports.reading import (
    ImportedFrame,
    ImportedMask,
    checked_size,
    documents,
    expect,
    image_place,
    polygons_to_rle,
    read_json,
)
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.exports.video import item_audio, write_sound
from openavs.media.encode import AudioSource
from openavs.structures.masks import mask_to_rle, rle_to_mask
from openavs.structures.types import BoolMask, ClipResult, Segment
from openavs.utils.text import pluralize, printable
from openavs.visualization.colors import DISTINCT

URL = "/data/local-files/?d="  # of a file below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT
RUN_BITS = (3, 4, 8, 16)  # the four lengths of a run's number
WORD = 8  # bits of a value
SILENCE = 8000  # samples per second of the audio of a clip without any


def write(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `tasks.json`, `labeling.xml` and, unless `images` is False, `images/` and `sounds/<clip>.wav`."""
    summary, sounds, mute = ExportSummary(), dict[str, None](), 0
    with (folder / "tasks.json").open("w", encoding="ascii") as file:
        for item in items:
            file.write(",\n" if summary.clips else "[\n")
            json.dump(_task(item.result, options.categories), file, separators=(",", ":"), allow_nan=False)
            sounds |= dict.fromkeys(printable(event.phrase) for event in item.result.events)
            summary.clips += 1
            summary.frames += len(item.result.frames)
            summary.segments += sum(len(frame.segments) for frame in item.result.frames)
            if options.images is not False:
                write_images(folder / "images", item)
                mute += _write_sound(folder / "sounds" / f"{item.result.clip}.wav", item)
        file.write("\n]\n" if summary.clips else "[]\n")
    names = [printable(name) for name in options.categories.names]
    (folder / "labeling.xml").write_bytes(_labeling(names, list(sounds)))
    if mute:
        summary.notes.append(
            f"silence is the sound of {pluralize(mute, 'clip')} without audio, since every task has a sound"
        )
    return summary


def _write_sound(path: Path, item: ExportItem) -> bool:
    """Write the audio of a clip, and return whether it has none."""
    path.parent.mkdir(exist_ok=True)
    sound, times = item_audio(item), [frame.time for frame in item.result.frames]
    length = int(SILENCE * (max(times, default=0.0) + 1))
    write_sound(path, sound or AudioSource(np.zeros((length, 1), dtype=np.float32), SILENCE))
    return sound is None


def _labeling(names: Sequence[str], sounds: Sequence[str]) -> bytes:
    """Return the labeling configuration; every control needs a label, also if nothing was found."""
    view = ElementTree.Element("View")
    for tag, name, value in (("Image", "frames", "valueList"), ("Audio", "sound", "value")):
        ElementTree.SubElement(view, tag, {"name": name, value: f"${name}"})
        control, own = ("BrushLabels", names or ["object"]) if tag == "Image" else ("Labels", sounds or ["sound"])
        labels = ElementTree.SubElement(view, control, {"name": f"{name}-labels", "toName": name})
        for place, label in enumerate(own):
            color = "#{:02x}{:02x}{:02x}".format(*DISTINCT[place % len(DISTINCT)])
            ElementTree.SubElement(labels, "Label", {"value": label, "background": color})
    ElementTree.indent(view)
    return bytes(ElementTree.tostring(view, encoding="utf-8"))


def _task(result: ClipResult, categories: Categories) -> dict[str, Any]:
    """Return the task of a clip; `indices` and `labels` are for the way back."""
    regions = [
        _region(result, place, number, segment, categories)
        for place, frame in enumerate(result.frames)
        for number, segment in enumerate(frame.segments)
    ]
    scores = [segment.score for frame in result.frames for segment in frame.segments]
    end = max([frame.time for frame in result.frames] + [event.offset for event in result.events], default=0.0)
    for number, event in enumerate(result.events):
        span = {"start": event.onset, "end": event.offset, "channel": 0, "labels": [printable(event.phrase)]}
        target = {"from_name": "sound-labels", "to_name": "sound", "original_length": end}
        regions.append({"id": f"event-{number}", "type": "labels", "score": event.score, "value": span, **target})
    return {
        "data": {
            "clip": result.clip,
            "frames": [f"{URL}images/{quote(image_name(result.clip, frame.index))}" for frame in result.frames],
            "indices": [frame.index for frame in result.frames],
            "times": [frame.time for frame in result.frames],
            "sound": f"{URL}sounds/{quote(result.clip)}.wav",
            "labels": [printable(name) for name in categories.names],
        },
        "predictions": [
            {
                "model_version": f"openavs {__version__}",
                "score": round(sum(scores) / len(scores), 6) if scores else 0.0,
                "result": regions,
            }
        ],
    }


def _region(result: ClipResult, place: int, number: int, segment: Segment, categories: Categories) -> dict[str, Any]:
    category = categories.id(segment)
    assert category is not None, "segments without a category are filtered out"
    name = printable(categories.names[category - 1])
    value = {"format": "rle", "rle": encode_brush(rle_to_mask(segment.mask)), "brushlabels": [name]}
    meta = {"text": [printable(segment.phrase)], **({} if segment.track is None else {"track": segment.track})}
    return {
        "id": f"frame-{place}-{number}",
        "type": "brushlabels",
        "from_name": "frames-labels",
        "to_name": "frames",
        "original_width": result.size[1],
        "original_height": result.size[0],
        "image_rotation": 0,
        "item_index": place,
        "score": segment.score,
        "value": value,
        "meta": meta,
    }


def encode_brush(mask: BoolMask) -> list[int]:
    """Return the bytes of a mask `[H, W]` as a brush: all four channels are 255 inside and 0 outside."""
    flat = mask.ravel()
    edges = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist(), flat.size]
    bits = [f"{4 * flat.size:032b}{WORD - 1:05b}", *(f"{size - 1:04b}" for size in RUN_BITS)]
    for start, end in pairwise(edges):
        left, value = 4 * (end - start), f"{255 * int(flat[start]):08b}"
        while left:
            run = min(left, 1 << RUN_BITS[-1])
            kind = next(kind for kind, size in enumerate(RUN_BITS) if run <= 1 << size)
            bits.append(f"1{kind:02b}{run - 1:0{RUN_BITS[kind]}b}{value}")
            left -= run
    text = "".join(bits)
    return np.packbits(np.frombuffer(text.encode("ascii"), dtype=np.uint8) - ord("0")).tolist()


def decode_brush(code: Sequence[int], size: tuple[int, int], where: str) -> BoolMask:
    """Return the mask `[H, W]` of a brush: the pixels with at least half of the full alpha.

    Raises:
        InputError: not such a code, or of another size.
    """
    if not all(type(byte) is int and 0 <= byte <= 255 for byte in code):
        raise InputError(f"{where}: the brush is not a list of bytes")
    bits = (np.unpackbits(np.asarray(code, dtype=np.uint8)) + ord("0")).tobytes().decode("ascii")
    at = 0

    def number(length: int) -> int:
        nonlocal at
        at += length
        if at > len(bits):
            raise InputError(f"{where}: the brush ends early")
        return int(bits[at - length : at], 2)

    total, word, lengths = number(32), number(5) + 1, [number(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1] or word != WORD:
        raise InputError(
            f"{where}: the brush has {total} values of {word} bits, not {size[1]} x {size[0]} x 4 of {WORD}"
        )
    values, i = np.zeros(total, dtype=np.uint8), 0
    while i < total:
        repeated = number(1)
        end = i + 1 + number(lengths[number(2)])
        if end > total:
            raise InputError(f"{where}: the brush has too many values")
        count = 1 if repeated else end - i
        values[i:end] = np.frombuffer(number(count * WORD).to_bytes(count, "big"), dtype=np.uint8)
        i = end
    return values.reshape(*size, 4)[..., 3] >= 128


# ------------------------------------------------------------------------------------------------------ the way back


def read(path: Path) -> Iterator[ImportedFrame]:
    """Read Label Studio's JSON export of the tasks of this module, or of tasks with one image `<clip>/<frame>.jpg`.

    Tasks without an annotation were not reviewed and are left out. Of several annotations the one that is marked as
    ground truth counts.

    Raises:
        InputError: invalid, several annotations of a task, or regions without a mask, such as rectangles.
    """
    reviewed = False
    for _, content in documents(path, ".json"):
        tasks = read_json(content, path)
        if not isinstance(tasks, list):
            raise InputError(f"{path} is not a list of tasks; export 'JSON' from Label Studio")
        for place, task in enumerate(tasks):
            where = f"{path}: task {place}"
            annotation = _annotation(task, where)
            if annotation is not None:
                reviewed = True
                yield from _read_task(expect(task, "data", dict, where), annotation, where)
    if not reviewed:
        raise InputError(f"{path} has no annotations of a person; submit the tasks and export 'JSON' from Label Studio")


def _annotation(task: Any, where: str) -> dict[str, Any] | None:
    """Return the annotation of a task that counts."""
    found = [own for own in expect(task, "annotations", list, where, []) if isinstance(own, dict)]
    found = [own for own in found if own.get("was_cancelled") is not True]
    found = [own for own in found if own.get("ground_truth") is True] or found
    if len(found) > 1:
        people = ", ".join(_author(own) or "?" for own in found)
        raise InputError(f"{where} has {len(found)} annotations, by {people}; mark one of them as ground truth")
    return found[0] if found else None


def _author(annotation: dict[str, Any]) -> str | None:
    person = annotation.get("completed_by")
    if isinstance(person, dict):
        person = person.get("email") or person.get("id")
    return None if person is None else f"user {person}" if isinstance(person, int) else f"{person!s:.100}"


def _read_task(data: dict[str, Any], annotation: dict[str, Any], where: str) -> Iterator[ImportedFrame]:
    clips: tuple[str, ...]
    if "indices" in data:
        clips, indices = (expect(data, "clip", str, where),), expect(data, "indices", list, where)
    else:
        image = next((own for own in data.values() if isinstance(own, str) and "." in own.rpartition("/")[2]), "")
        clips, index = image_place(unquote(image))
        indices = [index]
    if not all(type(index) is int for index in indices) or len(set(indices)) != len(indices):
        raise InputError(f"{where} has invalid indices of its frames")
    names = frozenset(map(str, expect(data, "labels", list, where, []))) or None
    masks: dict[int, list[ImportedMask]] = {index: [] for index in indices}
    sizes: dict[int, tuple[int, int]] = {}
    for number, region in enumerate(expect(annotation, "result", list, where)):
        own = f"{where}, region {number}"
        kind = expect(region, "type", str, own)
        if kind in ("rectanglelabels", "ellipselabels", "keypointlabels"):
            raise InputError(f"{own} is of the type {kind}, which has no mask; draw brushes or polygons")
        if kind in ("brushlabels", "polygonlabels"):
            place = expect(region, "item_index", int, own, 0)
            if not 0 <= place < len(indices):
                raise InputError(f"{own} is in frame {place} of {len(indices)}")
            mask = _read_region(region, kind, own)
            masks[indices[place]].append(mask)
            sizes[indices[place]] = mask.mask.size
    at = _utc(annotation.get("updated_at") or annotation.get("created_at"))
    for index in indices:
        yield ImportedFrame(clips, index, sizes.get(index), tuple(masks[index]), names, _author(annotation), at)


def _read_region(region: dict[str, Any], kind: str, where: str) -> ImportedMask:
    value = expect(region, "value", dict, where)
    labels = expect(value, kind, list, where)
    if len(labels) != 1 or not isinstance(labels[0], str):
        raise InputError(f"{where} has {len(labels)} labels; give it one")
    height, width = (expect(region, f"original_{side}", int, where) for side in ("height", "width"))
    size = checked_size(height, width, where)
    meta = region.get("meta")
    number = meta.get("track") if isinstance(meta, dict) and isinstance(meta.get("track"), int) else None
    if kind == "brushlabels":
        mask = mask_to_rle(decode_brush(expect(value, "rle", list, where), size, where))
        return ImportedMask(mask, labels[0], number)
    points = expect(value, "points", list, where)
    if not all(isinstance(p, list) and len(p) == 2 and all(type(v) in (int, float) for v in p) for p in points):
        raise InputError(f"{where} has invalid points")
    polygon = [value * side / 100 for point in points for value, side in zip(point, (width, height), strict=True)]
    return ImportedMask(polygons_to_rle([polygon], size, where), labels[0], number, polygon=True)


def _utc(text: Any) -> str | None:
    """Return a date and time as `Correction.at` has them; None for other data."""
    with suppress(ValueError, TypeError, OverflowError):
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return None
