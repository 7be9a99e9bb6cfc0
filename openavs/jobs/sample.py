"""Samples: the clips of a job as plain data, one line of `manifest.jsonl` each, and their ids."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.utils.fs import safe_id
from openavs.utils.serialization import parse_json


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A file inside a tar: its name there, the bytes of the archive that hold it, and its suffix."""

    name: str
    offset: int
    size: int
    suffix: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip by its files; nothing is opened before the clip is processed.

    Attributes:
        id: The clip's id, unique in the job and safe as a folder name.
        path: The video, or the folder of its images, or the tar that holds it; absolute, or relative to the job's root.
        name: The name that was wanted as the id, where another had to be taken.
        bytes: Size of the file; None for a folder or a missing file. The manifest keeps sizes in a file of their own.
        audio: A sound file that replaces the sound of the video.
        frames: Image files of a clip that comes as images, one a second.
        places: Paths of the clip's masks below `labels/` or `predictions/`, where a benchmark's layout defines them.
        like: A mask whose size the clip's masks take.
        group: The folder below `labels/` of a clip without `places`.
        classes: The clip's known labels (only the `oracle` captioner reads them).
        video_slice: The video inside the tar `path`.
        audio_slice: The sound inside the tar `path`.
        problem: The fault of the row that the sample was read from; such a clip fails without being opened.
        video: The raw video of a clip that comes as images, for the frames between them.
        sound: A generated sound that replaces the sound of the files, as `media.replacement_sound` names it.
        expression: A sentence that chooses the objects to segment.
        times: The times of the frames to take from the video, in seconds; empty: at the recipe's rate.
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
    video: str | None = None
    sound: str | None = None
    expression: str | None = None
    times: tuple[float, ...] = ()

    @property
    def source(self) -> str:
        """The source as results name it."""
        return f"{self.path}::{self.video_slice.name}" if self.video_slice else self.path


_WRITTEN = tuple(key for key in Sample.__slots__ if key != "bytes")


def sample_to_line(sample: Sample) -> bytes:
    """Encode a sample as one line of ASCII JSON, without its size and its empty fields."""
    data = {key: value for key in _WRITTEN if (value := getattr(sample, key)) is not None and value != ()}
    return (_encode(data) + "\n").encode("ascii")


def line_to_sample(line: bytes) -> Sample:
    """Decode a line of `sample_to_line`; the size is not restored.

    Raises:
        InputError: the line is damaged.
    """
    try:
        data = parse_json(line)
        return Sample(**{key: _decode_field(key, value) for key, value in data.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"manifest.jsonl has an invalid line ({error!s:.200}); run the same command again, which rewrites it"
        ) from error


def relative(path: str | Path, root: Path) -> str:
    """Return a path relative to `root`; a path elsewhere is returned as it is."""
    text = os.fspath(path)
    return text[len(str(root)) + 1 :] if text.startswith(f"{root}{os.sep}") else text


def file_size(path: str | Path) -> int | None:
    """Return the size of a file; None for a folder or a missing file, whose clip fails later."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _slice_to_list(value: Any) -> list[Any]:
    if isinstance(value, ByteRange):
        return [getattr(value, field.name) for field in fields(value)]
    raise TypeError(f"a manifest holds no {type(value).__name__}")


_encode = json.JSONEncoder(separators=(",", ":"), default=_slice_to_list).encode  # made once: there are many lines


def _decode_field(key: str, value: Any) -> Any:
    if key.endswith("_slice"):
        return ByteRange(*value)
    return tuple(value) if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------------------ records

Row = Mapping[str, Any]
"""The outcome of one clip: one line of `index.jsonl`."""


def is_row(row: Any) -> bool:
    """Return whether data is the outcome of a clip: id, status, the reason of a failure, and rejections by reason."""
    if not isinstance(row, dict) or not isinstance(row.get("rejected"), dict):
        return False
    texts = ("id", "status", "reason") if row.get("status") == "failed" else ("id", "status")
    return all(isinstance(row.get(key), str) for key in texts) and all(
        isinstance(count, int) for count in row["rejected"].values()
    )


def are_stamps(files: Any) -> bool:
    """Return whether data maps paths of files to their stamps."""
    return isinstance(files, dict) and all(isinstance(stamp, str) for stamp in files.values())


# ---------------------------------------------------------------------------------------------------------------- ids

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")  # names that safe_id keeps: a fast path for most of them


def unique_ids(named: Sequence[tuple[str, str]]) -> list[str]:
    """Return one id for each (name, origin), unique also on file systems that ignore case, in any order of the source.

    A safe name of one clip alone is kept. Any other gets a hash of its origin (the clip's path below the source), so
    that its id does not change when other clips are removed.
    """
    shared = Counter(name.casefold() for name, _ in named)
    ids = [
        name if shared[name.casefold()] == 1 and _PLAIN.fullmatch(name) else _hashed(name, origin, shared)
        for name, origin in named
    ]
    used = Counter(id.casefold() for id in ids)
    if len(used) == len(ids):
        return ids
    taken: set[str] = set()
    for i in sorted(range(len(ids)), key=lambda i: named[i]):  # equal hashes, or a name that equals a hashed one
        name, origin = named[i]
        salt = 0
        while ids[i].casefold() in taken or (used[ids[i].casefold()] > 1 and not salt):
            salt += 1
            ids[i] = safe_id(name, taken=[name], origin=f"{origin}\0{salt}")
        taken.add(ids[i].casefold())
    return ids


def _hashed(name: str, origin: str, shared: Counter[str]) -> str:
    return safe_id(name, taken=[name] if shared[name.casefold()] > 1 else (), origin=origin)
