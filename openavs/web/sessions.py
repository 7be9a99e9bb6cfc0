"""The files of each visit: a folder that goes when the visit ends, or when nobody came back to it for a while."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from openavs.errors import InputError
from openavs.results.result import Result
from openavs.structures.types import Clip

log = logging.getLogger(__name__)

KEPT = "given"  # the folder of a visit in which its uploads are


@dataclass(eq=False)
class Session:
    """One visit. `token` names its folder in addresses and cannot be guessed.

    `result` is that of its last run, without the sound of its clip, and `reopen` opens that clip again.
    """

    folder: Path
    token: str
    used: float
    busy: int = 0
    closed: bool = False
    result: Result | None = None
    reopen: Callable[[], Clip] | None = None
    uploads: set[Path] = field(default_factory=set)
    runs: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def begin(self, uploads: Iterable[Path]) -> None:
        """A new run: forgets the last one and removes its files."""
        self.result = self.reopen = None
        self.stopping = threading.Event()  # that of an earlier run stays set: it may not have noticed yet
        self.runs += 1
        self.uploads.update(uploads)
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / KEPT).mkdir(parents=True)

    def keep(self, upload: Path) -> Path:
        """The visit's own hold on an uploaded file, under the same name; InputError if it is gone."""
        try:
            place = self.folder / KEPT / upload.parent.name / upload.name  # every content has a folder
            place.parent.mkdir(exist_ok=True)
            if not place.exists():
                _link(upload, place)
        except FileNotFoundError as problem:
            raise InputError(f"{upload.name} is no longer here; upload it again") from problem
        return place

    def called(self, name: str) -> str:
        """A file as its owner shall find it again: `mydog-masks.zip`."""
        return f"{self.result.clip}-{name}" if self.result is not None else name

    def file(self, name: str) -> Path | None:
        """One of its files by name; None for whatever is not one of them."""
        path = self.folder / name
        is_own = path.parent == self.folder and path.is_file() and not path.is_symlink()
        return path if is_own and not name.startswith(".") else None


def _link(upload: Path, place: Path) -> None:
    try:
        os.link(upload, place)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or one without links
        shutil.copyfile(upload, place)


class SessionStore:
    """All visits by the browser's own key; thread-safe."""

    def __init__(self, root: Path, keep: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.root, self._keep, self._clock = root, keep, clock
        self._by_key: dict[str, Session] = {}
        self._lock = threading.RLock()

    def get(self, key: str | None) -> Session:
        """The visit of that key, begun if it is new; one without a key is always new."""
        with self._lock:
            self.expire()
            key = key or secrets.token_hex(16)
            if key not in self._by_key:
                token = secrets.token_urlsafe(24)
                folder = self.root / token
                folder.mkdir(parents=True)
                self._by_key[key] = Session(folder, token, self._clock())
            session = self._by_key[key]
            session.used = self._clock()
            return session

    def by_token(self, token: str) -> Session | None:
        """The visit whose files have that token in their address."""
        with self._lock:
            asked = token.encode()
            return next((s for s in self._by_key.values() if secrets.compare_digest(s.token.encode(), asked)), None)

    def end(self, key: str | None) -> None:
        """Removes a visit's files now, or, if it is at work, when that is done."""
        with self._lock:
            session = self._by_key.get(key or "")
            if session is None:
                return
            session.closed = True
            session.stopping.set()
            if not session.busy:
                self._remove(session)

    def stop(self) -> None:
        """Has the models of all visits stop at their next step."""
        with self._lock:
            for session in self._by_key.values():
                session.stopping.set()

    def working(self, session: Session, change: int) -> None:
        """Counts what is going on in a visit: +1 when it begins, -1 when it ends."""
        with self._lock:
            session.busy += change
            session.used = self._clock()
            if session.closed and not session.busy:
                self._remove(session)  # again, where it ended before its work began and made the folder anew

    def expire(self) -> None:
        """Removes the visits that were not used for as long as files are kept."""
        with self._lock:
            before = self._clock() - self._keep
            for session in [s for s in self._by_key.values() if s.used < before and not s.busy]:
                self._remove(session)

    def _remove(self, session: Session) -> None:
        self._by_key = {key: other for key, other in self._by_key.items() if other is not session}
        shutil.rmtree(session.folder, ignore_errors=True)
        needed = set().union(*(other.uploads for other in self._by_key.values()))
        for path in session.uploads - needed:  # equal uploads of two visits are one file
            path.unlink(missing_ok=True)
        log.info("a visit ended; its files are removed")

    def __len__(self) -> int:
        return len(self._by_key)
