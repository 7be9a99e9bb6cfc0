"""Manifests: a table with one row per clip, as JSON lines, CSV, TSV or Parquet.

Columns: `path` (or `video`), and optionally `id` (or `uid`; else the file's name), `audio` (a sound file that replaces
the video's own), `group` (the folder below `labels/`; AVSBench-semantic's subset) and `classes` (the sounding objects,
for the `oracle` captioner: a list, or text with commas). Others are ignored. Relative paths start from the manifest's
folder.

A row with invalid cells is a clip that fails with the reason `bad_row`; an invalid file is refused.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from openavs.errors import InputError
from openavs.evaluation.datasets.tables import is_plain_name
from openavs.jobs.sample import Sample, relative
from openavs.labeling.base import Candidate, Source, make_source
from openavs.utils.serialization import parse_json
from openavs.utils.text import pluralize

ALIASES = {"path": ("path", "video"), "id": ("id", "uid"), "audio": ("audio",), "group": ("group",)}
BATCH = 10_000

Cells = Mapping[str, Any]


def read(path: Path) -> Source:
    """Read a manifest in the format of its ending.

    Raises:
        InputError: it cannot be read, a line is damaged, or all of its rows are invalid.
    """
    root = Path(os.path.abspath(path)).parent
    readers = {".parquet": _parquet, ".csv": _csv, ".tsv": _csv}
    rows = readers.get(path.suffix.lower(), _jsonl)(path)
    try:
        found = [_found(number, row, root) for number, row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the manifest {path} cannot be read ({_line(error)})") from error
    bad = [one.sample.problem for one in found if one.sample.problem is not None]
    if bad and len(bad) == len(found):
        raise InputError(f"{path}, {bad[0]}")
    failing = f"{pluralize(len(bad), 'row')} of {path} cannot be used, and their clips fail as bad_row: such as "
    return make_source("manifest", root, found, [failing + sentence for sentence in bad[:1]])


def _found(number: int, row: Cells, root: Path) -> Candidate:
    """Return the clip of a row, or one that fails with the fault of the row."""
    try:
        return _clip(f"row {number}", row, root)
    except InputError as error:
        id, path = (next((row[n] for n in ALIASES[k] if isinstance(row.get(n), str)), "") for k in ("id", "path"))
        return Candidate(id or f"row{number}", Sample("", relative(path, root), problem=str(error)))


def _clip(where: str, row: Cells, root: Path) -> Candidate:
    cells = {name: _text(row, names, where) for name, names in ALIASES.items()}
    path, group = cells["path"], cells["group"]
    if path is None:
        raise InputError(f"{where} has no 'path'; each row names its video, such as {{'id': 'a', 'path': 'a.mp4'}}")
    if group is not None and (not is_plain_name(group) or group.startswith(".")):
        raise InputError(f"{where}: the group {group!r:.60} is not the name of a folder")
    audio = None if cells["audio"] is None else relative(cells["audio"], root)
    item = Sample("", relative(path, root), audio=audio, group=group, classes=_classes(row.get("classes"), where))
    return Candidate(cells["id"] or PurePath(path).stem, item)


def _text(row: Cells, names: tuple[str, ...], where: str) -> str | None:
    value = None
    for name in names:
        value = row.get(name)
        if value not in (None, ""):
            break
    else:
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # ids are often numbers
    raise InputError(f"{where}: {names[0]!r} is {value!r:.60} and should be text")


def _classes(value: Any, where: str) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError(f"{where}: 'classes' is {value!r:.60} and should be a list of texts")
    return tuple(word.strip() for word in words if word.strip())


def _jsonl(path: Path) -> Iterator[tuple[int, Cells]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise InputError(f"{path}, row {number} is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, row {number} is {line.strip()!r:.60} and should be an object in braces")
            yield number, row


def _csv(path: Path) -> Iterator[tuple[int, Cells]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        if not set(reader.fieldnames or ()) & {*ALIASES["path"]}:
            raise InputError(f"{path} has no column 'path' in its first line; name the columns there")
        for row in reader:
            yield reader.line_num, row


def _parquet(path: Path) -> Iterator[tuple[int, Cells]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError("a Parquet manifest needs pyarrow; pip install 'openavs[jobs]', or give JSON lines") from error
    number = 0
    try:
        with ParquetFile(path) as file:
            wanted = {name for names in ALIASES.values() for name in names} | {"classes"}
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except ArrowException as error:
        raise InputError(f"the manifest {path} cannot be read as Parquet ({_line(error)})") from error


def _line(error: Exception) -> str:
    """Return the message of a library in one line."""
    return " ".join(str(error).split())[:160]
