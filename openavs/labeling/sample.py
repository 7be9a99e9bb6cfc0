"""What a job lists: one `Item` a clip, as plain data that a line of the plan holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.utils.strict_json import parse_json


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A file inside a tar: the bytes of the archive that are its content. `name` is the member's, `suffix` its kind."""

    name: str
    offset: int
    size: int
    suffix: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip to label, by its files; nothing is opened before it is worked on.

    `path` is the video (or the folder of its pictures, or the tar that holds it), relative to the source's folder or
    absolute. `name` is the id that was asked for, where another had to be taken. `bytes` is the size of the file as it
    was found (None: it was not there), of which the plan keeps a list of its own. `frames` are the picture files of a
    clip that comes as pictures, one a second. `places` are its label files below `labels/`, where a benchmark's layout
    gives them, and `like` a mask whose size they take. `group` is the folder below `labels/` of all others. `classes`
    are the clip's known labels (only the `oracle` captioner looks at them). `problem` is why the manifest's row cannot
    be used: such a clip fails without being opened.
    """

    id: str
    path: str
    name: str | None = None
    bytes: int | None = None
    audio: str | None = None
    frames: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    like: str | None = None
    group: str | None = None
    classes: tuple[str, ...] = ()
    video_slice: ByteRange | None = None
    audio_slice: ByteRange | None = None
    problem: str | None = None

    @property
    def source(self) -> str:
        """What results name as the source."""
        return f"{self.path}::{self.video_slice.name}" if self.video_slice else self.path


_WRITTEN = tuple(key for key in Sample.__slots__ if key != "bytes")


def sample_to_line(item: Sample) -> bytes:
    """One line of ASCII JSON, whatever bytes a file name holds; without the size and what an item does not have."""
    data = {key: value for key in _WRITTEN if (value := getattr(item, key)) is not None and value != ()}
    return (_encode(data) + "\n").encode("ascii")


def line_to_sample(line: bytes) -> Sample:
    """The inverse of `item_to_line`, but for the size; InputError for a line that is none."""
    try:
        data = parse_json(line)
        return Sample(**{key: _typed(key, value) for key, value in data.items()})
    except (ValueError, TypeError, AttributeError) as problem:
        sentence = f"plan.jsonl has an invalid line ({problem!s:.200}); run the same again, which writes it anew"
        raise InputError(sentence) from problem


def locate(root: Path, path: str) -> Path:
    """Where a path of the plan lies on this machine."""
    return root / path


def _slice_to_list(value: Any) -> list[Any]:
    if isinstance(value, ByteRange):
        return [getattr(value, field.name) for field in fields(value)]
    raise TypeError(f"a plan holds no {type(value).__name__}")


_encode = json.JSONEncoder(separators=(",", ":"), default=_slice_to_list).encode  # made once: there are many lines


def _typed(key: str, value: Any) -> Any:
    if key.endswith("_slice"):
        return ByteRange(*value)
    return tuple(value) if isinstance(value, list) else value


Row = Mapping[str, Any]
"""What became of one clip: one line of `index.jsonl`."""


def is_row(row: Any) -> bool:
    """Whether this is what became of a clip: its id, a status, a reason if it failed, and what was dropped."""
    if not isinstance(row, dict) or not isinstance(row.get("rejected"), dict):
        return False
    texts = ("id", "status", "reason") if row.get("status") == "failed" else ("id", "status")
    return all(isinstance(row.get(key), str) for key in texts) and all(
        isinstance(count, int) for count in row["rejected"].values()
    )


def are_stamps(files: Any) -> bool:
    """Whether this is the stamp of each of a clip's files by their paths."""
    return isinstance(files, dict) and all(isinstance(stamp, str) for stamp in files.values())
