"""Results on disk: `ClipResult` <-> JSON without loss, and the folder `clips/<id>/` of one clip."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import shutil
import types as builtin_types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from PIL import Image

from openavs.errors import InputError
from openavs.structures.masks import RLE, check_rle, segments_to_label_map, voc_palette
from openavs.structures.types import ClipResult, ImageArray
from openavs.utils.fs import atomic_write, safe_id, sync_folder
from openavs.utils.serialization import parse_json

_CLIP_FILES = frozenset(("masks", "overlay.mp4", "report.html", "result.json", "video.mp4"))
FORMAT = 1  # raised when a reader of the old format would misread the new one
Values = Literal["instance", "class"]
_UNCORRECTED = b'"corrections": []\n}\n'


# ---------------------------------------------------------------------------------------------------------- as JSON


def result_to_json(result: ClipResult) -> dict[str, Any]:
    """Return JSON data that `result_from_json` decodes to an equal `ClipResult`.

    Raises:
        InputError: a number is not finite (JSON has no such numbers), or the recipe has values that are not plain data.
    """
    return {"format": FORMAT, **encode(result, "result")}


def result_from_json(data: Any) -> ClipResult:
    """Decode the data of `result_to_json`.

    Raises:
        InputError: a key is missing or unknown, or a value has the wrong type; the message names the first one.
    """
    if not isinstance(data, dict) or "format" not in data:
        raise InputError("not an openavs result: it has no 'format' key")
    if data["format"] != FORMAT:
        raise InputError(f"the result has format {data['format']!r} and this openavs reads {FORMAT}; update openavs")
    body = {key: value for key, value in data.items() if key != "format"}
    decoded: ClipResult = _decode(ClipResult, body, "result")
    # Masks of another size than the clip would fail later, when they are combined.
    for frame in decoded.frames:
        for segment in frame.segments:
            if segment.mask.size != decoded.size:
                raise InputError(
                    f"result.frames: a mask of frame {frame.index} is {segment.mask.size[0]} x {segment.mask.size[1]} "
                    f"pixels in a clip of {decoded.size[0]} x {decoded.size[1]}"
                )
    return decoded


def encode(value: Any, where: str) -> Any:
    """Encode dataclasses, tuples, mappings and scalars as JSON data; InputError names `where` for other values."""
    if isinstance(value, np.generic):
        value = value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise InputError(f"{where} has a key that is not text, which a result file cannot hold")
        return {key: encode(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} is {value}, which a result file cannot hold; use a finite number")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise InputError(f"{where} is a {type(value).__name__}, which a result file cannot hold; use plain data")


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return encode(data, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _decode_object(kind, data, where)
    if origin in (Union, builtin_types.UnionType):
        return None if data is None else _decode(next(a for a in arguments if a is not type(None)), data, where)
    if origin is Literal:
        if data not in arguments:
            raise InputError(f"{where} is {data!r:.60} and should be one of {', '.join(map(repr, arguments))}")
        return data
    if origin is tuple:
        return _decode_tuple(arguments, data, where)
    if origin is dict:
        return {k: _decode(arguments[1], v, f"{where}.{k}") for k, v in _expect(dict, data, where).items()}
    if kind is float:
        if isinstance(data, bool) or not isinstance(data, int | float) or not math.isfinite(data):
            raise InputError(f"{where} is {data!r:.60} and should be a finite number")
        return float(data)
    if kind is int and isinstance(data, bool):
        raise InputError(f"{where} is {data!r} and should be a whole number")
    return _expect(kind, data, where)


def _expect(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, kind):
        raise InputError(f"{where} is {data!r:.60} and should be of type {kind.__name__}")
    return data


def _decode_tuple(arguments: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    items = _expect(list, data, where)
    if arguments[-1] is Ellipsis:
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if len(items) != len(arguments):
        raise InputError(f"{where} has {len(items)} values and should have {len(arguments)}")
    return tuple(_decode(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, items, strict=True)))


def _decode_object(kind: type, data: Any, where: str) -> Any:
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    given = _expect(dict, data, where)
    added = {f.name for f in dataclasses.fields(kind) if f.metadata.get("added")}  # not in files of earlier versions
    for name in names:
        if name not in given and name not in added:
            raise InputError(f"{where} lacks the key {name!r}")
    for name in given:
        if name not in names:
            raise InputError(f"{where} has the unknown key {name!r:.60}")
    made = kind(**{name: _decode(hints[name], given[name], f"{where}.{name}") for name in names if name in given})
    if isinstance(made, RLE):
        check_rle(made, where)
    return made


# -------------------------------------------------------------------------------------------------- as a folder


def clip_folder(out: Path, clip: str) -> Path:
    """Return `out/clips/<clip>`.

    Raises:
        InputError: the id is not a safe folder name (see `safe_id`), or `clips` is a link.
    """
    if safe_id(clip) != clip:
        raise InputError(f"{clip!r:.60} cannot name a folder; make clip ids with safe_id")
    clips = out / "clips"
    refuse_links(clips)
    return clips / clip


def refuse_links(*paths: Path) -> None:
    """Raise InputError if one is a symbolic link: its target, anywhere, would be written or removed."""
    for path in paths:
        if path.is_symlink():
            raise InputError(f"{path} is a link; remove it, or give an output folder of its own")


def is_clip_folder(path: Path) -> bool:
    """Return True for a folder that openavs wrote: unfinished, with `result.json`, or with files of a result only."""
    if path.is_symlink() or not path.is_dir():
        return False
    entries = (entry.name for entry in path.iterdir())
    names = {name for name in entries if not name.startswith(".")}  # a killed run leaves unfinished files
    unfinished = path.name.startswith(".") and path.name.endswith(".part")
    return unfinished or "result.json" in names or names <= _CLIP_FILES


def refuse_other_folder(folder: Path) -> None:
    """Raise InputError if the folder of a clip's result is a link or has other files, such as the clip's images."""
    refuse_links(folder)
    if folder.exists() and not is_clip_folder(folder):
        raise InputError(f"{folder} holds other files, and the clip's result would replace them; give another --out")


def is_done(out: Path, clip: str) -> bool:
    """Return True if the clip has a `result.json`; it is written last, after all other files."""
    return (clip_folder(out, clip) / "result.json").is_file()


def read_result(out: str | Path, clip: str) -> ClipResult:
    """Read the result of one clip from a result folder.

    Raises:
        InputError: it does not exist, or is not a result in JSON.
    """
    path = clip_folder(Path(out), clip) / "result.json"
    try:
        return result_from_json(parse_json(path.read_bytes()))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; is {clip} a finished clip of {out}?") from error
    except ValueError as error:
        raise InputError(f"{path} is not a JSON file: {error}") from error


def is_corrected(out: Path, clip: str) -> bool:
    """Return True if a person changed the clip's result; a run never makes such a result again."""
    path = clip_folder(out, clip) / "result.json"
    if not path.is_file():  # opening a FIFO would block
        return False
    try:
        with path.open("rb") as file:  # the records are last, and most results have none
            file.seek(max(path.stat().st_size - len(_UNCORRECTED), 0))
            if file.read() == _UNCORRECTED:
                return False
        return bool(read_result(out, clip).corrections)
    except (InputError, OSError):
        return False


def write_result(
    out: str | Path,
    result: ClipResult,
    *,
    values: Values = "instance",
    classes: Sequence[str] = (),
    extras: Callable[[Path], object] | None = None,
) -> Path:
    """Write `out/clips/<id>/` and return it: the files of `result_files` and those of `extras`.

    All files are written into a hidden folder beside it, which replaces an earlier result by one rename; a failure
    leaves nothing.

    Args:
        out: the result folder.
        result: the result of one clip.
        values: meaning of the pixel values, see `mask_values`.
        classes: classes of `values="class"`.
        extras: called with the hidden folder, to write more files such as the overlay.

    Raises:
        InputError: the folder has files that are not a result.
    """
    folder = clip_folder(Path(out), result.clip)
    making = folder.with_name(f".{folder.name}.part")
    refuse_links(making)
    refuse_other_folder(folder)
    shutil.rmtree(making, ignore_errors=True)  # leftovers of a killed run
    try:
        (making / "masks").mkdir(parents=True)
        for name, content in result_files(result, values, classes):
            atomic_write(making / name, content)
        if extras is not None:
            extras(making)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(making, folder)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return folder


def result_files(result: ClipResult, values: Values, classes: Sequence[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files of a clip's result: the masks, and `result.json` last.

    Raises:
        InputError: the masks or the JSON cannot hold a value; see `mask_values` and `result_to_json`.
    """
    for frame, numbers in zip(result.frames, mask_values(result, values, classes), strict=True):
        label_map = segments_to_label_map(frame.segments, numbers, result.size)
        yield f"masks/{frame.index:05d}.png", palette_png(label_map)
    yield "result.json", json_bytes(result_to_json(result))


def mask_values(result: ClipResult, values: Values, classes: Sequence[str] = ()) -> list[list[int]]:
    """Return the pixel value of each segment of each frame in the masks; 0 is the background.

    `instance`: 1, 2, ... in the order of the frame's segments or, with a tracker, one number per track of the clip.
    `class`: the position of the segment's label in `classes`, counted from 1 unless `classes` begins with `background`;
    segments without a label in `classes` are 0.

    Raises:
        InputError: a value above 255, or `class` without classes.
    """
    if values == "class":
        numbers = _class_values(result, classes)
    else:
        numbers = _instance_values(result)
    if max((n for frame in numbers for n in frame), default=0) > 255:
        raise InputError(f"{result.clip} has more than 255 {values} numbers, which an 8-bit mask cannot hold")
    return numbers


def _class_values(result: ClipResult, classes: Sequence[str]) -> list[list[int]]:
    if not classes:
        raise InputError("class masks need the list of classes; give a vocabulary or write instance masks")
    first = 0 if classes[0] == "background" else 1
    index = {name: place for place, name in enumerate(classes, start=first)}
    return [[index.get(s.label or "", 0) for s in frame.segments] for frame in result.frames]


def _instance_values(result: ClipResult) -> list[list[int]]:
    segments = [s for frame in result.frames for s in frame.segments]
    if not segments or any(s.track is None for s in segments):
        return [list(range(1, len(frame.segments) + 1)) for frame in result.frames]
    place = {track: i for i, track in enumerate(dict.fromkeys(s.track for s in segments), start=1)}
    return [[place[s.track] for s in frame.segments] for frame in result.frames]


def palette_png(label_map: ImageArray) -> bytes:
    """Encode a label map, uint8 `[H, W]`, as an 8-bit palette PNG in the colors of PASCAL VOC."""
    image = Image.fromarray(label_map)
    image.putpalette(voc_palette().tobytes())  # changes the mode to P and keeps the values
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def json_bytes(data: Any) -> bytes:
    """Encode as ASCII JSON, so that file names with bytes that are not valid text can be written and read back."""
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode("ascii")
