"""Checkpoints of a job: the journal of a shard under way, and the completion file of a finished shard; and its logs.

The journal makes a shard resumable clip by clip, and names the clips that may have crashed a worker. Its lines are
appended with one write each and not flushed to the disk: a line, or a file it names, may be lost with the power.
Files are therefore compared with the journal before their clips count as finished.

A completion file is renamed into place when all files of its shard are on the disk. The state of a job is read from
the completion files and from nothing else. `OUT/log` holds what differs from run to run, one file per process; these
files are not hashed.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.jobs.job_store import store_of
from openavs.jobs.sample import Row, are_stamps, is_row
from openavs.results.serialization import is_corrected
from openavs.utils.fs import atomic_write, is_intact, read_regular, sync_to_disk, write_hashed
from openavs.utils.serialization import parse_json

FORMAT = 3
WORK = "work"
"""The folder of the job's own files below the result folder."""

Entry = tuple[Row, Mapping[str, str]]
"""A finished clip: its row, and the stamp (size and SHA-256) of each of its files by path below the result folder."""

Timing = Mapping[str, Any]
"""The time of a clip: `seconds` (wall time), and `stages` (seconds by stage)."""


# ------------------------------------------------------------------------------------------------------------ journal


@dataclass
class ShardJournal:
    """The journal `work/<shard>.jsonl`. Only the holder of the shard's lock may write it, from any thread.

    `finished` are entries by clip, `timings` their times, `begun` the clips of the last run that are not finished. On
    an object store (`mirror`, see `JobStore.write_line`) each clip has an object with its last line.
    """

    path: Path
    finished: dict[str, Entry] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    mirror: Callable[[str, bytes | None], None] = lambda clip, line: None

    @classmethod
    def open(cls, out: Path, shard: int) -> ShardJournal:
        """Read the journal of a shard of a result folder; that of an object store is brought here first."""
        path, store = journal_path(out, shard), store_of(out)
        if store is None:
            return cls.read(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.pull_journal(shard))
        return replace(cls.read(path), mirror=partial(store.write_line, shard))

    @classmethod
    def read(cls, path: Path) -> ShardJournal:
        """Read a journal; a line that was cut short by a kill is skipped.

        Raises:
            InputError: a folder, a link or a FIFO is in its place.
        """
        journal = cls(path)
        try:
            lines = read_regular(path).splitlines()
        except FileNotFoundError:
            return journal
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); remove it and run the same command again") from error
        for line in lines:
            journal._add(line)
        return journal

    def start(self) -> None:
        """Record that a run begins: the clips that earlier runs began are no longer under way."""
        self.path.parent.mkdir(exist_ok=True)
        for clip in self.begun:
            self.mirror(clip, None)
        self.begun.clear()
        self._append({"start": True}, first=b"\n")  # ends a line that was cut short

    def begin(self, clip: str) -> None:
        """Record that a clip is about to be opened."""
        self.mirror(clip, self._append({"begin": clip}))

    def lay_aside(self, clip: str) -> None:
        """Record that a clip that was begun is not under way for now."""
        self._append({"aside": clip})
        self.mirror(clip, None)

    def finish(self, row: Row, files: Mapping[str, str], timing: Timing | None = None) -> None:
        """Record a finished clip, whose files are written."""
        data = {"row": dict(row), "files": dict(files), "timing": timing}
        self.mirror(row["id"], self._append(data))
        self._finished(data)

    def forget_changed(self, out: Path) -> None:
        """Drop finished clips whose files are missing or differ from the record; not those that a person corrected."""
        if (store := store_of(out)) is not None:
            for clip in store.lost({clip: files for clip, (_, files) in self.finished.items()}, verify=True):
                del self.finished[clip]
            return
        for clip, (_, files) in list(self.finished.items()):
            intact = all(is_intact(out / path, stamp, verify=True) for path, stamp in files.items())
            if not intact and not is_corrected(out, clip):
                del self.finished[clip]

    def _add(self, line: bytes) -> None:
        """Parse one line; malformed lines are skipped."""
        try:
            data: Any = parse_json(line)
        except ValueError:
            return
        if not isinstance(data, dict):
            return
        if "start" in data:
            self.begun.clear()
        elif isinstance(data.get("begin"), str):
            self.begun.add(data["begin"])
        elif isinstance(data.get("aside"), str):
            self.begun.discard(data["aside"])
        elif is_row(data.get("row")) and are_stamps(data.get("files")):
            self._finished(data)

    def _finished(self, data: Mapping[str, Any]) -> None:
        clip, timing = data["row"]["id"], data.get("timing")
        self.finished[clip] = (data["row"], data["files"])
        self.begun.discard(clip)
        if timing is not None and is_timing(timing):
            self.timings[clip] = timing

    def _append(self, data: Mapping[str, Any], first: bytes = b"") -> bytes:
        line = first + json.dumps(data).encode("ascii") + b"\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if os.write(handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(handle)
        return line


def journal_path(out: Path, shard: int) -> Path:
    """Return the path of a shard's journal, which exists until the shard is completed."""
    return out / WORK / f"{shard:06d}.jsonl"


# --------------------------------------------------------------------------------------------------------- completion


def completion_path(out: Path, shard: int) -> Path:
    """Return the path of a shard's completion file."""
    return out / WORK / "shards" / f"{shard:06d}.json"


def read_completion(out: Path, shard: int, key: str) -> dict[str, Any] | None:
    """Read the completion file of a shard; None if the shard is not completed.

    Raises:
        InputError: the file is damaged or belongs to another manifest.
    """
    path, store = completion_path(out, shard), store_of(out)
    if store is not None and not path.exists():
        store.pull(path.relative_to(out).as_posix())
    try:
        completion = parse_json(read_regular(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); remove it and run the same command again") from error
    if not isinstance(completion, dict) or completion.get("format") != FORMAT or completion.get("key") != key:
        raise InputError(f"{path} belongs to another job; give another --out or start again with --overwrite")
    if not _is_valid(completion):
        raise InputError(f"{path} is damaged (its rows are invalid); remove it and run the same command again")
    return completion


def _is_valid(completion: Mapping[str, Any]) -> bool:
    rows, files = completion.get("rows"), completion.get("files")
    if not isinstance(rows, list) or not isinstance(files, dict) or not all(map(is_row, rows)):
        return False
    if not all(isinstance(completion.get(name), dict) for name in ("counts", "reasons", "rejected")):
        return False
    return files.keys() == {row["id"] for row in rows} and all(map(are_stamps, files.values()))


def complete(out: Path, shard: int, key: str, entries: Sequence[Entry]) -> dict[str, Any]:
    """Flush the files of a shard to the disk and write its completion file; an object store has them already.

    `entries` are all clips of the shard, in the order of the manifest.
    """
    rows = [dict(row) for row, _ in entries]
    files = {row["id"]: dict(own) for row, own in entries}
    completion = {"format": FORMAT, "shard": shard, "key": key, **summarize(rows), "rows": rows, "files": files}
    store = store_of(out)
    if store is None:
        sync_to_disk(out / path for own in files.values() for path in own)
    path = completion_path(out, shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, _json(completion))
    if store is not None:
        store.complete(shard)
    journal_path(out, shard).unlink(missing_ok=True)
    return completion


def amend(out: Path, completion: Mapping[str, Any], row: Row, files: Mapping[str, str]) -> None:
    """Write the completion file of a shard again, with another row and other files of one clip."""
    rows = [dict(row) if own["id"] == row["id"] else own for own in completion["rows"]]
    changed = {**completion, **summarize(rows), "rows": rows, "files": {**completion["files"], row["id"]: dict(files)}}
    atomic_write(completion_path(out, completion["shard"]), _json(changed))


def summarize(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Count rows by status, failed ones by reason, and the rejections of the pipeline and the label filters."""
    found: dict[str, Counter[str]] = {"counts": Counter(), "reasons": Counter(), "rejected": Counter()}
    for row in rows:
        found["counts"][row["status"]] += 1
        found["reasons"].update([row["reason"]] if row["status"] == "failed" else [])
        found["rejected"].update(row["rejected"])
    return {name: dict(sorted(counter.items())) for name, counter in found.items()}


def failed_in(completion: Mapping[str, Any]) -> list[str]:
    """Return the clips of a completed shard that failed."""
    return [row["id"] for row in completion["rows"] if row["status"] == "failed"]


def reopen(out: Path, completion: Mapping[str, Any], again: Collection[str]) -> None:
    """Reopen a completed shard so that the clips `again` are run again; its journal gets all others."""
    journal_path(out, completion["shard"]).unlink(missing_ok=True)
    journal, timings = ShardJournal.open(out, completion["shard"]), read_timings(out, completion["shard"])
    journal.start()
    for row in completion["rows"]:
        if row["id"] not in again:
            journal.finish(row, completion["files"][row["id"]], timings.get(row["id"]))
    path, store = completion_path(out, completion["shard"]), store_of(out)
    if store is not None:
        store.objects.remove([path.relative_to(out).as_posix()])
    path.unlink()  # last: until then the shard is completed as it was


def completed(out: Path) -> set[int]:
    """Return the numbers of the completed shards."""
    if (store := store_of(out)) is not None:
        store.pull_completions()
    folder = completion_path(out, 0).parent
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return {int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()}


def _json(data: Any) -> bytes:
    return (json.dumps(data, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")


# ------------------------------------------------------------------------------------------------------------ timings


def save_timings(out: Path, shard: int, timings: Mapping[str, Timing]) -> None:
    """Write the times of a shard's clips; they differ from run to run, so they are kept beside the logs."""
    write_hashed(_timings_path(out, shard), json.dumps(dict(sorted(timings.items()))).encode("ascii"))


def read_timings(out: Path, shard: int) -> dict[str, Timing]:
    """Read the times of a shard's clips; empty if the log was removed or damaged."""
    try:
        found = parse_json(read_regular(_timings_path(out, shard)))
    except (FileNotFoundError, ValueError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {clip: timing for clip, timing in items if is_timing(timing)}


def is_timing(data: Any) -> bool:
    """Return whether data is the time of a clip."""
    if not isinstance(data, dict) or not isinstance(data.get("seconds"), float):
        return False
    stages = data.get("stages")
    return isinstance(stages, dict) and all(isinstance(spent, int | float) for spent in stages.values())


def _timings_path(out: Path, shard: int) -> Path:
    return out / "log" / "timings" / f"{shard:06d}.json"


def now() -> str:
    """Return the time as ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def append(out: Path, kind: str, event: dict[str, Any]) -> None:
    """Append a line to this process's log of that kind: `OUT/log/<kind>-<host>-<pid>.jsonl`."""
    path = log_path(out, kind, ".jsonl")
    with path.open("a", encoding="ascii") as file:
        file.write(json.dumps({"time": now(), **event}) + "\n")


def log_path(out: Path, kind: str, suffix: str) -> Path:
    """Return the path of this process's log; its folder is made."""
    folder = out / "log"
    folder.mkdir(exist_ok=True)
    host = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in socket.gethostname())
    return folder / f"{kind}-{host}-{os.getpid()}{suffix}"


def clip_events(out: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of all clips from the logs of all workers, in no order; malformed lines are skipped."""
    for path in sorted((out / "log").glob("clips-*.jsonl")):
        with path.open(encoding="ascii", errors="replace") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


@dataclass(frozen=True)
class StageTimes:
    """Seconds over all finished `clips`: in all and by stage; the rest is opening and writing."""

    clips: int
    seconds: float
    stages: dict[str, float]


def stage_times(out: Path) -> StageTimes:
    """Sum the logs of a result folder."""
    clips, seconds = 0, 0.0
    stages: Counter[str] = Counter()
    for event in clip_events(out):
        clips, seconds = clips + 1, seconds + event["seconds"]
        stages.update(event["timings"])
    return StageTimes(clips, round(seconds, 3), {stage: round(spent, 3) for stage, spent in stages.most_common()})
