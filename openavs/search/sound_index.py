"""Writes a sound index: reads the new and changed results of the runs, and replaces the file as a whole.

A result is read if the size or the time of its `result.json` differs from the index, and indexed if its content does.
The index is a copy until it is complete: readers, also after a crash, find the old one or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any

from openavs.errors import InputError
from openavs.jobs.locks import claimed
from openavs.jobs.manifest import LINES
from openavs.pipeline.context import Progress, no_progress
from openavs.search.encoder import TextEncoder, stored_encoder
from openavs.search.query import APPLICATION_ID, VERSION, check_index, sqlite_errors
from openavs.search.spans import Span, clip_spans
from openavs.stages.lexicon import lexicon
from openavs.utils.fs import sync_folder
from openavs.utils.serialization import parse_json
from openavs.utils.text import pluralize

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE runs (id INTEGER PRIMARY KEY, folder BLOB UNIQUE);
CREATE TABLE clips (
    id INTEGER PRIMARY KEY, run INTEGER, clip TEXT, duration REAL, bytes INTEGER, modified INTEGER, digest BLOB,
    UNIQUE (run, clip)
);
CREATE TABLE spans (
    id INTEGER PRIMARY KEY, clip INTEGER, phrase TEXT, label TEXT, track INTEGER, frame INTEGER, time REAL,
    x0 REAL, y0 REAL, x1 REAL, y1 REAL
);
CREATE TABLE texts (id INTEGER PRIMARY KEY, text TEXT UNIQUE, things TEXT);
CREATE TABLE vectors (text INTEGER PRIMARY KEY, vector BLOB);
-- The spans of each text. Times and scores are here, so that a query reads one table in order.
CREATE TABLE names (
    text INTEGER, clip INTEGER, span INTEGER, start REAL, end REAL, score REAL, seen INTEGER,
    PRIMARY KEY (text, clip, span)
) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5(text, things, content='texts', content_rowid='id', tokenize='porter unicode61');
"""
_SETTLED = 2_000_000_000  # ns: a file that is younger may be written again without another time


@dataclass
class IndexSummary:
    """The outcome of `update_index`.

    Attributes:
        clips: all clips of the index.
        new: clips that were added.
        changed: clips that were read again.
        removed: clips whose results are gone.
        spans: all spans.
        texts: all captions, phrases and labels.
        broken: the results that cannot be read, with the reason; spans of an earlier version stay.
        missing: clips without a result, by run that has any.
    """

    clips: int = 0
    new: int = 0
    changed: int = 0
    removed: int = 0
    spans: int = 0
    texts: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def update_index(
    path: Path, runs: Sequence[Path] = (), *, encoder: str | None = None, progress: Progress = no_progress
) -> IndexSummary:
    """Add runs to an index and update those that it has; the file is made if it does not exist.

    Args:
        path: the index.
        runs: result folders of `segment`, `evaluate` or `label`, finished or not.
        encoder: recipe whose captioner embeds the texts; None: the one of the index, if it has any.
        progress: called with the number of results that are read.

    Raises:
        InputError: a run is not a result folder, the file is something else or in use, or the encoder cannot be used.
    """
    path = path.absolute()
    for run in runs:
        if not any((run / name).exists() for name in ("clips", LINES)):
            raise InputError(f"{run} has no results; give the --out folder of 'openavs segment', 'evaluate' or 'label'")
    if path.exists():
        check_index(path)
    elif not runs:
        raise InputError(f"{path} does not exist; give the result folders that it is to index")
    path.parent.mkdir(parents=True, exist_ok=True)
    with claimed(path.parent, lock_byte(path)) as free:
        if not free:
            raise InputError(f"another 'openavs index' is writing {path}; wait until it is done")
        part = path.with_name(f".{path.name}.part")
        try:
            with sqlite_errors(path):
                return _update(path, part, runs, encoder, progress)
        finally:
            part.unlink(missing_ok=True)


def lock_byte(path: Path) -> int:
    """Return the byte of `.lock` that the writer of an index locks, beyond those of jobs in the same folder."""
    return (1 << 40) + zlib.crc32(os.fsencode(path.name))


def _update(path: Path, part: Path, runs: Sequence[Path], encoder: str | None, progress: Progress) -> IndexSummary:
    """Write a copy of the index and put it in the place of the old one."""
    part.unlink(missing_ok=True)
    if path.exists():
        shutil.copyfile(path, part)
    with closing(sqlite3.connect(part, isolation_level=None)) as db:
        # A crash leaves an incomplete copy, which the next run removes: no journal is needed.
        db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -200000")
        if not path.exists():
            db.executescript(_SCHEMA)
        db.execute("BEGIN")
        changes = db.total_changes
        writer = _Writer(db, progress)
        writer.update([Path(os.path.abspath(run)) for run in runs])
        model = stored_encoder(db) if encoder is None else TextEncoder(encoder)
        if model is not None:
            model.store(db)
        writer.finish()
        db.execute("COMMIT")
        if path.exists() and db.total_changes == changes:
            return writer.summary
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)
    return writer.summary


class _Writer:
    """The tables of an index while they are updated."""

    def __init__(self, db: sqlite3.Connection, progress: Progress) -> None:
        self.db, self.progress, self.summary = db, progress, IndexSummary()
        self._texts: dict[str, int] = dict(db.execute("SELECT text, id FROM texts"))
        self._last_text = max(self._texts.values(), default=0)
        self._new_texts = False
        # Numbers of removed rows are not used again before `_remove_stale`.
        self._last_clip, self._last_span = (self._count("max(id)", table) for table in ("clips", "spans"))
        self._stale: list[tuple[int]] = []  # clips whose spans are removed

    def update(self, runs: Iterable[Path]) -> None:
        """Read the new and changed results of the runs of the index and of further ones."""
        self.db.executemany("INSERT OR IGNORE INTO runs (folder) VALUES (?)", ((os.fsencode(run),) for run in runs))
        for number, folder in self.db.execute("SELECT id, folder FROM runs ORDER BY id").fetchall():
            self._update_run(number, Path(os.fsdecode(folder)))
        self._remove_stale()

    def finish(self) -> None:
        """Complete the summary, and the words of the texts if these are others than before."""
        if self._new_texts or self._stale:
            self.db.execute("INSERT INTO words (words) VALUES ('rebuild')")
        for name in ("clips", "spans", "texts"):
            setattr(self.summary, name, self._count("count(*)", name))

    def _count(self, value: str, table: str) -> int:
        return int(self.db.execute(f"SELECT {value} FROM {table}").fetchone()[0] or 0)

    def _update_run(self, number: int, run: Path) -> None:
        columns = "clip, id, bytes, modified, digest"
        rows = self.db.execute(f"SELECT {columns} FROM clips WHERE run = ?", (number,)).fetchall()
        known = {clip: facts for clip, *facts in rows}
        found = _find_results(run)
        gone = [(known[clip][0],) for clip in known if clip not in found]
        self._stale += gone
        self.summary.removed += len(gone)
        self.db.executemany("DELETE FROM clips WHERE id = ?", gone)
        if not run.is_dir():
            self.summary.notes.append(f"{run} is gone, and its {pluralize(len(known), 'clip')} are removed")
            self.db.execute("DELETE FROM runs WHERE id = ?", (number,))
            return
        if missing := _count_missing(run, len(found)):
            self.summary.missing[str(run)] = missing
            self.summary.notes.append(
                f"{pluralize(missing, 'clip')} of {run} have no result yet; run the command again when they are done"
            )
        pending = [
            clip for clip, stat in found.items() if clip not in known or not stat[1] or known[clip][1:3] != list(stat)
        ]
        for done, clip in enumerate(pending):
            self.progress(run.name, done, len(pending))
            self._read(number, run, clip, found[clip], known.get(clip))

    def _read(self, run: int, folder: Path, clip: str, stat: tuple[int, int], known: Sequence[Any] | None) -> None:
        """Read one result and store its spans, unless its content is known or it cannot be read."""
        path = folder / "clips" / clip / "result.json"
        try:
            content = path.read_bytes()
            digest = hashlib.sha256(content).digest()
            if known is not None and known[3] == digest:
                self.db.execute("UPDATE clips SET bytes = ?, modified = ? WHERE id = ?", (*stat, known[0]))
                return
            spans, duration = clip_spans(json.loads(content))
        except FileNotFoundError:  # replaced or removed since
            return
        except InputError as error:
            self._leave_out(path, str(error))
            return
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
            self._leave_out(path, f"damaged: {type(error).__name__} {error!s:.80}")
            return
        if known is not None:
            self._stale.append((known[0],))
            self.db.execute("DELETE FROM clips WHERE id = ?", (known[0],))
        self.summary.new += known is None
        self.summary.changed += known is not None
        self._last_clip += 1
        row = (self._last_clip, run, clip, duration, *stat, digest)
        self.db.execute("INSERT INTO clips VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._store(self._last_clip, spans)

    def _leave_out(self, path: Path, reason: str) -> None:
        self.summary.broken[str(path)] = reason
        self.summary.notes.append(f"{path} cannot be indexed ({reason}); run its clip again")

    def _store(self, clip: int, spans: Sequence[Span]) -> None:
        rows, names = [], []
        for number, span in enumerate(spans, start=self._last_span + 1):
            box = span.box or (None,) * 4
            rows.append((number, clip, span.phrase, span.label, span.track, span.frame, span.time, *box))
            times = (span.start, span.end, span.score, int(span.seen))
            names += [(self._text(text), clip, number, *times) for text in span.names]
        self._last_span += len(spans)
        self.db.executemany("INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self.db.executemany("INSERT INTO names VALUES (?, ?, ?, ?, ?, ?, ?)", names)

    def _text(self, text: str) -> int:
        number = self._texts.get(text)
        if number is None:
            number = self._last_text = self._last_text + 1
            self._texts[text], self._new_texts = number, True
            self.db.execute("INSERT INTO texts VALUES (?, ?, ?)", (number, text, "; ".join(lexicon(text))))
        return number

    def _remove_stale(self) -> None:
        """Remove the spans of changed and vanished clips, and texts that no span has any longer."""
        if not self._stale:
            return
        self.db.execute("CREATE TEMP TABLE stale (clip INTEGER PRIMARY KEY)")
        self.db.executemany("INSERT INTO stale VALUES (?)", self._stale)
        for table in ("names", "spans"):
            self.db.execute(f"DELETE FROM {table} WHERE clip IN (SELECT clip FROM stale)")
        self.db.execute("DELETE FROM texts WHERE id NOT IN (SELECT text FROM names)")
        self.db.execute("DELETE FROM vectors WHERE text NOT IN (SELECT id FROM texts)")


def _find_results(run: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of the `result.json` of each clip, by id. Unfinished clips have none."""
    found: dict[str, tuple[int, int]] = {}
    now = time.time_ns()
    try:
        names = sorted(os.listdir(run / "clips"))
    except (FileNotFoundError, NotADirectoryError):
        return found
    for name in names:
        if name.startswith("."):  # being written
            continue
        try:
            stat = os.stat(f"{run}/clips/{name}/result.json")
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not S_ISREG(stat.st_mode):  # opening a FIFO would block
            continue
        found[name] = stat.st_size, stat.st_mtime_ns if now - stat.st_mtime_ns > _SETTLED else 0
    return found


def _count_missing(run: Path, finished: int) -> int:
    """Return the number of clips in the manifest of a run that have neither a result nor a failure."""
    try:
        with (run / LINES).open("rb") as lines:
            planned = sum(1 for _ in lines)
    except FileNotFoundError:
        return 0
    try:
        failed = parse_json((run / "run.json").read_bytes()).get("failed", 0)
    except (OSError, ValueError, AttributeError):
        failed = 0
    return max(planned - finished - (failed if isinstance(failed, int) else 0), 0)
