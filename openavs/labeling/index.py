"""`OUT/index.jsonl` and `OUT/index.parquet`: one row a clip, sorted by id, derived from the commit marks.

What a clip took in seconds is added from the logs: that column alone differs from run to run.

They are written anew at the end of every run, one shard after another, so that memory does not grow with the job. They
hold the shards that are committed then: all of them once the job is finished.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from openavs.labeling.completion import committed, read_mark
from openavs.labeling.durations import read_seconds
from openavs.labeling.event_log import log_path
from openavs.labeling.locks import INDEX, claimed
from openavs.labeling.sample import Row
from openavs.utils.fs import sync_folder

log = logging.getLogger(__name__)

_TEXTS = ("id", "name", "source", "status", "reason", "detail")
_COUNTS = ("frames", "silent", "segments", "warnings")


class _Table(Protocol):
    def write(self, rows: Sequence[Row]) -> None: ...


def write_index(out: Path, key: str) -> int:
    """Writes both files (Parquet only where pyarrow is installed); returns the number of rows.

    Of several jobs that end together the last one to write has seen all marks.
    """
    parts = {out / f"index{kind}": log_path(out, "index", f"{kind}.part") for kind in (".jsonl", ".parquet")}
    with claimed(out, INDEX, wait=True):
        try:
            count = _write(out, key, *parts.values())
            for path, part in parts.items():
                if part.exists():
                    os.replace(part, path)
            sync_folder(out)
            return count
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)


def _write(out: Path, key: str, lines_path: Path, table_path: Path) -> int:
    count = 0
    with lines_path.open("wb") as lines, _parquet(table_path) as table:
        for rows in _shards(out, key):
            lines.writelines(json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n" for row in rows)
            if table is not None:
                table.write(rows)
            count += len(rows)
        lines.flush()
        os.fsync(lines.fileno())
    return count


def _shards(out: Path, key: str) -> Iterator[list[Row]]:
    for shard in sorted(committed(out)):
        mark = read_mark(out, shard, key)
        if mark is not None:
            seconds = read_seconds(out, shard)
            yield [{**row, "seconds": seconds.get(row["id"])} for row in mark["rows"]]


def _parquet(path: Path) -> AbstractContextManager[_Table | None]:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        log.info("without pyarrow there is no index.parquet; pip install 'openavs[jobs]' brings it")
        return nullcontext()
    return _ParquetTable(path)


class _ParquetTable(AbstractContextManager[_Table]):
    """A Parquet file that is written shard by shard, one row group each."""

    def __init__(self, path: Path) -> None:
        import pyarrow as arrow
        from pyarrow.parquet import ParquetWriter

        lists = {"prompts": arrow.string(), "labels": arrow.string(), "scores": arrow.float64()}
        lists |= {"areas": arrow.float64(), "found": arrow.int32()}
        fields = [(name, arrow.string()) for name in _TEXTS] + [(name, arrow.int32()) for name in _COUNTS]
        fields += [(name, arrow.list_(kind)) for name, kind in lists.items()]
        fields += [("rejected", arrow.map_(arrow.string(), arrow.int32())), ("seconds", arrow.float64())]
        self._schema = arrow.schema(fields)
        self._writer: Any = ParquetWriter(path, self._schema)

    def write(self, rows: Sequence[Row]) -> None:
        """Adds rows."""
        import pyarrow as arrow

        plain = [{**row, **_texts(row), "rejected": list(row["rejected"].items())} for row in rows]
        self._writer.write_table(arrow.Table.from_pylist(plain, schema=self._schema))

    def __exit__(self, *error: object) -> None:
        self._writer.close()


def _texts(row: Row) -> dict[str, str | None]:
    """A file's name may hold bytes that are no text, which JSON can say and Parquet cannot."""
    texts = {name: row[name] for name in _TEXTS}
    return {name: None if t is None else t.encode("utf-8", "backslashreplace").decode() for name, t in texts.items()}
