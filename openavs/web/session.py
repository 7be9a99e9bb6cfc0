"""Files of the web page: one folder for each session inside one private folder of the server."""

from __future__ import annotations

import hashlib
import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from openavs.errors import InputError
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import sample_scene
from openavs.utils.fs import hold_file, is_own, remove_unheld
from openavs.web import VIDEOS, SegmentRequest
from openavs.web.artifacts import link_or_copy

logger = logging.getLogger(__name__)

PREFIX, LOCK = "openavs-serve-", "lock"
INPUTS = "inputs"  # folder of a run
EXAMPLE_SEED = 4
MAX_RUNS = 6  # results of a session; the oldest ones are removed


@dataclass(eq=False)
class Run:
    """One run of a session.

    Attributes:
        number: of the run in its session; part of the addresses of its files.
        folder: of its files.
        request: on links to the uploads, which may be removed meanwhile.
        stop: set to end the run at its next step.
        proposed: phrases of the translator, which include those that the visitor removed; None before the result.
        poster: data URI of an image of the result; None if nothing was found.
        edits: number of corrections, undone ones included; each makes the overlay video out of date.
        is_corrected: a person changed the result, which another threshold does not replace.
        lock: held while files of a corrected result are exchanged.
    """

    number: int
    folder: Path
    request: SegmentRequest
    stop: threading.Event = field(default_factory=threading.Event)
    proposed: tuple[str, ...] | None = None
    poster: str | None = None
    edits: int = 0
    is_corrected: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def link_input(self, upload: Path) -> Path:
        """Link an upload into the run, which keeps it if the upload is removed; InputError if it is missing."""
        path = self.folder / INPUTS / upload.parent.name / upload.name  # Gradio has one folder for each content
        try:
            link_or_copy(upload, path)
        except FileNotFoundError as error:
            raise InputError(f"{upload.name} has been removed from the server; upload it again") from error
        return path


@dataclass(eq=False)
class Session:
    """The files and the results of one visitor.

    Attributes:
        folder: named by a token that cannot be guessed and is part of the addresses of its files.
        closed: time at which its page was closed or reloaded; None while it is open.
        uploads: uploaded files that go with the session.
        runs: the last runs, the one that is shown last.
        count: number of runs so far.
        playing: the clip of the player that the page has, as `SegmentRequest.clip`.
    """

    folder: Path
    last_used: float
    active: int = 0
    closed: float | None = None
    uploads: set[Path] = field(default_factory=set)
    runs: list[Run] = field(default_factory=list)
    count: int = 0
    playing: tuple[str, ...] = ()

    @property
    def shown(self) -> Run | None:
        """The run whose result the page shows; None before the first."""
        return next((run for run in reversed(self.runs) if run.proposed is not None), None)

    def video(self, run: Run) -> Path:
        """The file that the page plays for a run; all runs of a clip share it."""
        return self.folder / VIDEOS / f"{hashlib.sha256(repr(run.request.clip).encode()).hexdigest()[:16]}.mp4"

    def begin(self, request: SegmentRequest) -> Run:
        """Start a run; runs without a result and the oldest ones are removed.

        Raises:
            InputError: an upload has been removed.
        """
        self._keep([run for run in self.runs if run.proposed is not None][1 - MAX_RUNS :])
        self.count += 1
        run = Run(self.count, self.folder / str(self.count), request)
        self.runs.append(run)
        self.uploads.update(path for path in (request.source, request.audio) if path is not None)
        audio = request.audio and run.link_input(request.audio)
        run.request = replace(request, source=run.link_input(request.source), audio=audio)
        return run

    def finish(self, run: Run, proposed: tuple[str, ...]) -> None:
        """Add the result of a run, which replaces an uncorrected one of the same request with another threshold."""
        run.proposed = proposed
        same = replace(run.request, source=Path(), audio=None, threshold=None)
        self._keep(
            [
                other
                for other in self.runs
                if other is run
                or other.is_corrected
                or other.request.clip != run.request.clip
                or replace(other.request, source=Path(), audio=None, threshold=None) != same
            ]
        )

    def find(self, number: object) -> Run:
        """Return a run of the session that has a result; InputError if it has been removed."""
        run = next((run for run in self.runs if run.number == number and run.proposed is not None), None)
        if run is None:
            raise InputError("the result has been removed; run the clip again")
        return run

    def show(self, number: object) -> Run:
        """Return a run of the session as the one that is shown; InputError if it has been removed."""
        run = self.find(number)
        self.runs = [*(other for other in self.runs if other is not run), run]
        return run

    def stop(self) -> None:
        """End the current run at its next step."""
        for run in self.runs:
            run.stop.set()

    def _keep(self, runs: list[Run]) -> None:
        before, self.runs = self.runs, runs
        for run in before:
            if run not in runs:
                run.stop.set()
                shutil.rmtree(run.folder, ignore_errors=True)
                if all(self.video(run) != self.video(other) for other in runs):
                    self.video(run).unlink(missing_ok=True)


class SessionStore:
    """All sessions by Gradio's session key; thread-safe.

    Gradio's own `gr.State(time_to_live, delete_callback)` is not used: it keeps the state of a closed page for an hour
    and drops states above its capacity without calling back, so that their files would stay.
    """

    def __init__(
        self,
        root: Path,
        keep_seconds: float,
        reload_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root, self._keep_seconds, self._reload_seconds, self._clock = root, keep_seconds, reload_seconds, clock
        self._sessions: dict[str, Session] = {}
        self._lock = threading.RLock()
        root.mkdir(parents=True, exist_ok=True)

    def get(self, key: str | None) -> Session:
        """The session of a key, created if it is new; without a key a new one."""
        with self._lock:
            key = key or secrets.token_hex(16)
            if key not in self._sessions:
                folder = self.root / secrets.token_urlsafe(24)
                folder.mkdir()
                self._sessions[key] = Session(folder, self._clock())
            self._sessions[key].last_used = self._clock()
            return self._sessions[key]

    @contextmanager
    def active(self, key: str | None) -> Iterator[Session]:
        """The session of a key, whose files stay while the block runs."""
        with self._lock:
            session = self.get(key)
            session.active += 1
        try:
            yield session
        finally:
            with self._lock:
                session.active -= 1
                session.last_used = self._clock()
            self.expire()

    def end(self, key: str | None) -> None:
        """End the runs of a session; its files are removed unless its page comes back, as it does when reloaded."""
        with self._lock:
            session = self._sessions.get(key or "")
            if session is None:
                return
            session.closed = self._clock()
            session.stop()
        self.expire()
        if self._reload_seconds:
            timer = threading.Timer(self._reload_seconds, self.expire)
            timer.daemon = True
            timer.start()

    def resume(self, token: str, key: str | None) -> Session | None:
        """Give a reloaded page, with another key, the session whose folder has this name; None if it has ended."""
        with self._lock:
            names = {session.folder.name: old for old, session in self._sessions.items()}
            old = names.get(token)
            if old is None or not key:
                return None
            session = self._sessions.pop(old)
            session.closed, session.last_used = None, self._clock()
            session.stop()
            self._sessions[key] = session
            return session

    def stop_all(self) -> None:
        """End the runs of all sessions at their next step."""
        with self._lock:
            for session in self._sessions.values():
                session.stop()

    def expire(self) -> None:
        """Remove the sessions that were closed, or idle for longer than files are kept."""
        with self._lock:
            now = self._clock()
            for session in list(self._sessions.values()):
                is_closed = session.closed is not None and now - session.closed >= self._reload_seconds
                if not session.active and (is_closed or now - session.last_used > self._keep_seconds):
                    self._remove(session)

    def _remove(self, session: Session) -> None:
        self._sessions = {key: other for key, other in self._sessions.items() if other is not session}
        shutil.rmtree(session.folder, ignore_errors=True)
        in_use = set().union(*(other.uploads for other in self._sessions.values()))
        for path in session.uploads - in_use:  # equal uploads of two sessions are one file
            path.unlink(missing_ok=True)
        logger.info("a session ended; its files are removed")

    def __len__(self) -> int:
        return len(self._sessions)


def remove_old_files(folder: Path, max_age: float) -> None:
    """Remove files and empty folders below a folder that were not created, linked or renamed for `max_age` seconds.

    A run links its uploads, which renews them. Gradio's own `delete_cache` is not used: an upload that ends while it
    runs makes it raise an error, after which it never runs again.
    """
    oldest = time.time() - max_age
    for path in sorted(folder.rglob("*"), reverse=True):  # the content of a folder comes before the folder
        with suppress(OSError):  # removed meanwhile, or a folder that is not empty
            if path.lstat().st_ctime < oldest:
                path.rmdir() if path.is_dir() else path.unlink()


def write_example(folder: Path) -> Path:
    """Render the clip of the one-click example, a scene of the synthetic world."""
    path = folder / "example.mp4"
    write_clip(path, sample_scene("clip", "test", EXAMPLE_SEED, 0, size=(288, 384), seconds=6).scene)
    return path


@contextmanager
def server_tempdir(parent: Path | None = None) -> Iterator[Path]:
    """A private folder (mode 0700) that is removed at the end; those of killed servers are removed at the start."""
    parent = parent or Path(tempfile.gettempdir())
    for left in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # just being removed
            if is_own(left) and remove_unheld(left, LOCK):
                logger.info("removed %s, which a killed server left behind", left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        with hold_file(folder / LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
