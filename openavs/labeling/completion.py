"""Commit marks: `OUT/shards/<n>.json` says that a shard is done, which files it has, and what became of its clips.

A mark is renamed into place when all its files are on the disk. What a job as a whole has done is read from the marks
and from nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.labeling.durations import read_seconds
from openavs.labeling.journal import Entry, ShardJournal
from openavs.labeling.sample import are_stamps, is_row
from openavs.utils.durable import sync_to_disk, write_whole
from openavs.utils.fs import read_regular
from openavs.utils.strict_json import parse_json

FORMAT = 2  # 1 had no sizes


def mark_path(out: Path, shard: int) -> Path:
    """Where the mark of a shard lies."""
    return out / "shards" / f"{shard:06d}.json"


def journal_path(out: Path, shard: int) -> Path:
    """Where the journal of a shard lies until it is committed."""
    return out / "work" / f"{shard:06d}.jsonl"


def read_mark(out: Path, shard: int, key: str) -> dict[str, Any] | None:
    """The mark of a shard; None if it is not committed. InputError if it is damaged or of another plan."""
    path = mark_path(out, shard)
    try:
        mark = parse_json(read_regular(path))
    except FileNotFoundError:
        return None
    except ValueError as problem:
        raise InputError(f"{path} is damaged ({problem}); remove it and run the same again") from problem
    if not isinstance(mark, dict) or mark.get("format") != FORMAT or mark.get("plan") != key:
        raise InputError(f"{path} belongs to another plan; give another --out or start anew with --overwrite")
    if not _is_whole(mark):
        raise InputError(f"{path} is damaged (its rows are none); remove it and run the same again")
    return mark


def _is_whole(mark: Mapping[str, Any]) -> bool:
    """Whether a mark has rows and files as `commit` writes them."""
    rows, files = mark.get("rows"), mark.get("files")
    if not isinstance(rows, list) or not isinstance(files, dict) or not all(map(is_row, rows)):
        return False
    if not all(isinstance(mark.get(name), dict) for name in ("counts", "reasons", "rejected")):
        return False
    return files.keys() == {row["id"] for row in rows} and all(map(are_stamps, files.values()))


def commit(out: Path, shard: int, key: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """Flushes the files of a shard and writes its mark; `entries` are those of all its clips, in order of their ids."""
    rows = [dict(row) for row, _ in entries]
    files = {row["id"]: dict(own) for row, own in entries}
    mark = {"format": FORMAT, "shard": shard, "plan": key, **summary(rows), "rows": rows, "files": files}
    sync_to_disk(out / path for own in files.values() for path in own)
    path = mark_path(out, shard)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, _json(mark), durable=True)
    journal_path(out, shard).unlink(missing_ok=True)
    return mark


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of rows by status, of failed ones by reason, and of all that the pipeline and filters dropped."""
    found: dict[str, Counter[str]] = {"counts": Counter(), "reasons": Counter(), "rejected": Counter()}
    for row in rows:
        found["counts"][row["status"]] += 1
        found["reasons"].update([row["reason"]] if row["status"] == "failed" else [])
        found["rejected"].update(row["rejected"])
    return {name: dict(sorted(counter.items())) for name, counter in found.items()}


def invalidate(out: Path, mark: Mapping[str, Any], again: Collection[str]) -> None:
    """Takes a commit back so that the clips `again` are done again; the journal gets all others."""
    path = journal_path(out, mark["shard"])
    path.unlink(missing_ok=True)
    journal, seconds = ShardJournal(path), read_seconds(out, mark["shard"])
    journal.start()
    for row in mark["rows"]:
        if row["id"] not in again:
            journal.finish(row, mark["files"][row["id"]], seconds.get(row["id"]))
    mark_path(out, mark["shard"]).unlink()  # last: until then the shard is committed as it was


def committed(out: Path) -> set[int]:
    """The numbers of the shards that have a mark."""
    folder = out / "shards"
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return {int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()}


def _json(data: Any) -> bytes:
    return (json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")
