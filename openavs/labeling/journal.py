"""The journal of a shard that is not committed yet: which clips were begun, which are finished with which files.

It makes a shard resumable clip by clip, and it tells which clips can have killed a worker. Lines are appended with one
write each and never flushed to the disk: a line, or the files it speaks of, may be lost with the power, so files are
checked against it before they are believed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.labeling.sample import Row, are_stamps, is_row
from openavs.utils.durable import is_intact
from openavs.utils.fs import read_regular
from openavs.utils.strict_json import parse_json

Entry = tuple[Row, Mapping[str, str]]
"""A finished clip: its row, and the stamp (size and SHA-256) of each of its files by path below the result folder."""


@dataclass
class ShardJournal:
    """`OUT/work/<shard>.jsonl`. Only who holds the shard may write it; any of its threads may."""

    path: Path
    finished: dict[str, Entry] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # that finished clips took
    begun: set[str] = field(default_factory=set)  # by the last run, and not finished

    @classmethod
    def read(cls, path: Path) -> ShardJournal:
        """What is there; a line that was cut short by a kill is left out. InputError if it is no regular file."""
        journal = cls(path)
        try:
            lines = read_regular(path).splitlines()
        except FileNotFoundError:
            return journal
        except ValueError as problem:
            raise InputError(f"{path} is damaged ({problem}); remove it and run the same again") from problem
        for line in lines:
            journal._take(line)
        return journal

    def start(self) -> None:
        """A run begins: what earlier ones began is no longer under way."""
        self.path.parent.mkdir(exist_ok=True)
        self.begun.clear()
        self._append({"start": True}, first=b"\n")  # ends a line that was cut short

    def begin(self, clip: str) -> None:
        """A clip is about to be opened."""
        self._append({"begin": clip})

    def lay_aside(self, clip: str) -> None:
        """A clip that was begun is not under way for now."""
        self._append({"aside": clip})

    def finish(self, row: Row, files: Mapping[str, str], seconds: float | None = None) -> None:
        """A clip is finished and its files are there; `seconds` is how long it took, where that is known."""
        data = {"row": dict(row), "files": dict(files), "seconds": seconds}
        self._append(data)
        self._finished(data)

    def believe(self, out: Path) -> None:
        """Forgets finished clips whose files are not there as recorded."""
        for clip, (_, files) in list(self.finished.items()):
            if not all(is_intact(out / path, stamp, verify=True) for path, stamp in files.items()):
                del self.finished[clip]

    def _take(self, line: bytes) -> None:
        """Takes a line in; what is none of ours, as a kill or a failing disk leaves it, is left out."""
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
        clip, seconds = data["row"]["id"], data.get("seconds")
        self.finished[clip] = (data["row"], data["files"])
        self.begun.discard(clip)
        if seconds is not None:
            self.seconds[clip] = seconds

    def _append(self, data: Mapping[str, Any], first: bytes = b"") -> None:
        line = first + json.dumps(data).encode("ascii") + b"\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if os.write(handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(handle)
