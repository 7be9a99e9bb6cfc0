"""The index of a result folder: `OUT/index.jsonl` and, if wanted, `OUT/index.parquet`, one row a clip, sorted by id.

Rows come from the completion files. The seconds of a clip are added from the logs: that column alone differs from run
to run. The index is written at the end of every run, shard after shard, so that memory does not grow with the job, and
holds the shards that are completed by then.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from openavs.jobs.checkpoint import completed, log_path, read_completion, read_timings
from openavs.jobs.job_store import store_of
from openavs.jobs.locks import INDEX, claimed
from openavs.jobs.manifest import Manifest
from openavs.jobs.sample import Row, Sample
from openavs.results.filters import FilteredResult
from openavs.structures.types import ClipResult
from openavs.utils.fs import sync_folder

logger = logging.getLogger(__name__)

# --------------------------------------------------------------------------------------------------------------- rows


def finished_row(sample: Sample, result: ClipResult, filtered: FilteredResult) -> Row:
    """Return the row of a clip that is done (`ok`), or that a label filter dropped as a whole (`filtered`).

    `prompts` are the clip's object prompts. The other lists have the same order and are about the segments that are
    left: `labels` the class of a prompt (null in open vocabulary), `scores` the best box score (null: nothing found),
    `areas` the largest share of the frame, `found` the number of frames. `rejected` counts the rejections of the
    pipeline and the label filters by reason.
    """
    frames = filtered.result.frames
    prompts = {prompt.phrase: prompt.label for frame in frames for prompt in frame.prompts}
    pixels = result.size[0] * result.size[1]
    found: dict[str, list[tuple[float, float]]] = {phrase: [] for phrase in prompts}
    seen: Counter[str] = Counter()
    for frame in frames:
        for segment in frame.segments:
            found.setdefault(segment.phrase, []).append((segment.score, segment.mask.area / pixels))
        seen.update({segment.phrase for segment in frame.segments})
    return {
        **_names(sample),
        "status": "filtered" if filtered.reason else "ok",
        "reason": filtered.reason,
        "detail": None,
        "frames": len(frames),
        "silent": sum(frame.silent for frame in frames),
        "segments": sum(len(frame.segments) for frame in frames),
        "prompts": list(found),
        "labels": [prompts.get(phrase) for phrase in found],
        "scores": [max((score for score, _ in own), default=None) for own in found.values()],
        "areas": [round(max((area for _, area in own), default=0.0), 6) for own in found.values()],
        "found": [seen[phrase] for phrase in found],
        "rejected": _rejections(result, filtered),
        "warnings": len(result.warnings),
    }


def failed_row(sample: Sample, reason: str, detail: str) -> Row:
    """Return the row of a clip without a result; `reason` is a short word to count by, `detail` the sentence."""
    empty: dict[str, Any] = {"frames": 0, "silent": 0, "segments": 0}
    empty |= {name: [] for name in ("prompts", "labels", "scores", "areas", "found")}
    return {
        **_names(sample),
        "status": "failed",
        "reason": reason,
        "detail": detail,
        **empty,
        "rejected": {},
        "warnings": 0,
    }


def _names(sample: Sample) -> dict[str, Any]:
    return {"id": sample.id, "name": sample.name, "source": sample.source}


def _rejections(result: ClipResult, filtered: FilteredResult) -> dict[str, int]:
    """Count rejections by reason; the pipeline's reasons have blanks in them, the filters' are keys of the recipe."""
    own = Counter(rejection.reason for frame in result.frames for rejection in frame.rejected)
    rules = Counter({f"label_filter.{rule}": count for rule, count in filtered.rejected.items()})
    if filtered.reason:
        rules[f"label_filter.{filtered.reason}"] += 1
    return dict(sorted((own + rules).items()))


# -------------------------------------------------------------------------------------------------------------- files

_TEXTS = ("id", "name", "source", "status", "reason", "detail")
_COUNTS = ("frames", "silent", "segments", "warnings")


class _Table(Protocol):
    def write(self, rows: Sequence[Row]) -> None: ...


def write_index(out: Path, manifest: Manifest, *, parquet: bool = False) -> int:
    """Write the index (Parquet only where pyarrow is installed); returns the number of rows.

    Of several jobs that end together, the last one to write finds all completion files.
    """
    kinds = (".jsonl", ".parquet") if parquet else (".jsonl",)
    parts = {out / f"index{kind}": log_path(out, "index", f"{kind}.part") for kind in kinds}
    with claimed(out, INDEX, wait=True):
        try:
            count = _write(_rows(out, manifest), *parts.values())
            for path, part in parts.items():
                if part.exists():
                    os.replace(part, path)
            sync_folder(out)
            if (store := store_of(out)) is not None:
                store.push(*(path.name for path in parts))
            return count
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)


def _write(shards: Iterable[Sequence[Row]], lines_path: Path, table_path: Path | None = None) -> int:
    count = 0
    with lines_path.open("wb") as lines, nullcontext() if table_path is None else _parquet(table_path) as table:
        for rows in shards:
            lines.writelines(json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n" for row in rows)
            if table is not None:
                table.write(rows)
            count += len(rows)
        lines.flush()
        os.fsync(lines.fileno())
    return count


def _rows(out: Path, manifest: Manifest) -> Iterator[Sequence[Row]]:
    """Yield the rows of the completed shards, sorted by id (the clips of an open manifest are in any order)."""
    shards = _shards(out, manifest)
    if manifest.is_open:
        yield sorted((row for rows in shards for row in rows), key=lambda row: str(row["id"]))
    else:
        yield from shards


def _shards(out: Path, manifest: Manifest) -> Iterator[list[Row]]:
    for shard in sorted(completed(out)):
        completion, timings = read_completion(out, shard, manifest.key), read_timings(out, shard)
        rows = [] if completion is None else completion["rows"]  # None: reopened by another job meanwhile
        yield [{**row, "seconds": timings.get(row["id"], {}).get("seconds")} for row in rows]


def _parquet(path: Path) -> AbstractContextManager[_Table | None]:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        logger.info("index.parquet needs pyarrow: pip install 'openavs[jobs]'")
        return nullcontext()
    return _ParquetTable(path)


class _ParquetTable(AbstractContextManager[_Table]):
    """A Parquet file that is written shard after shard, one row group each."""

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
        """Append rows."""
        import pyarrow as arrow

        plain = [{**row, **_texts(row), "rejected": list(row["rejected"].items())} for row in rows]
        self._writer.write_table(arrow.Table.from_pylist(plain, schema=self._schema))

    def __exit__(self, *error: object) -> None:
        self._writer.close()


def _texts(row: Row) -> dict[str, str | None]:
    """Escape bytes of file names that are not text, which JSON can hold and Parquet cannot."""
    texts = {name: row[name] for name in _TEXTS}
    return {name: None if t is None else t.encode("utf-8", "backslashreplace").decode() for name, t in texts.items()}
