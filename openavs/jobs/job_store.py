"""A result folder on an object store: the same files as in a local one, as objects of the same names.

A process of the job works in a folder of its own, the scratch folder (`Job.out`), with the code of local jobs. Finished
work is written to the store: the files of a clip, then its line of the journal, and, when all clips of a shard are
finished, the shard's completion object. The store alone decides; nothing in a scratch folder is needed again. The
functions of `locks.py` and `checkpoint.py` call the store of a folder if it has one (`store_of`).

Claims take the place of locks. `work/claims/<name>.<n>` is created if it is absent, so one process alone gets it. Its
owner writes it again every few seconds. A process that finds it unchanged for `LEASE` seconds of its own clock creates
number n + 1, which takes the claim over; no clocks are compared. On the owner's machine the lock of its scratch folder
shows at once that it has ended. A process that was only held up may go on beside its successor: both write the same
bytes.

    work/claims/000012.0           shard 12; also `index.0`, `open.0`, and `run-<owner>.0` of each run
    work/journal/000012/<id>.json  a clip of shard 12: begun, or finished, with its row; until the shard is completed
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openavs.errors import InputError, OpenAVSError, StoreError
from openavs.utils.fs import hold_file, is_held, is_own, remove_file, remove_unheld, stamp
from openavs.utils.objects import ObjectStore, is_object_name
from openavs.utils.serialization import parse_json

logger = logging.getLogger(__name__)

LEASE = 60.0
"""Seconds without a sign of life after which a claim may be taken over."""
BEATS = 4
"""Signs of life of a claim in `LEASE` seconds."""
POLL = 2.0
"""Seconds between two looks at a claim that is waited for."""
CLAIMS, JOURNAL, SHARDS, TIMINGS = "work/claims", "work/journal", "work/shards", "log/timings"
ALIVE = ".alive"
"""The file in a scratch folder that its run keeps locked."""

_stores: dict[Path, JobStore] = {}


def store_of(out: Path) -> JobStore | None:
    """Return the store of a scratch folder; None for a local result folder."""
    return _stores.get(out)


@contextmanager
def scratch_of(url: str) -> Iterator[JobStore]:
    """Open the result folder at an address for a run: yields its store, with a scratch folder that ends with the run.

    Raises:
        InputError: the store cannot be used.
    """
    top = _private_folder()
    out, left = Path(tempfile.mkdtemp(dir=top)), False
    try:
        store = attach(out, url, secrets.token_hex(8))
        store.objects.check_create()
        try:
            with store.named():
                yield store
        finally:
            left = not store.end()
    finally:
        detach(out)
        # With those of runs that were killed, which their claims name until now. If claims of this run could not be
        # removed, its folder stays, so that the next run sees that it has ended.
        for folder in top.iterdir():
            if folder != out or not left:
                remove_unheld(folder, ALIVE)


def attach(out: Path, url: str, owner: str) -> JobStore:
    """Make a folder the scratch folder of a result folder on a store, in this process."""
    if out not in _stores:
        _stores[out] = JobStore(out, url, owner)
    return _stores[out]


def detach(out: Path) -> None:
    """Release the claims of this process, and forget the store of a folder."""
    store = _stores.pop(out, None)
    if store is not None:
        store.close()


@dataclass
class _Seen:
    """A claim as listings show it: its number, what the store says of it and since when, and its content if read."""

    number: int
    state: str
    since: float
    content: Mapping[str, Any] | None = None


class JobStore:
    """The result folder of a job on a store, as one process of a run sees it; `owner` is the same in all of a run."""

    def __init__(self, out: Path, url: str, owner: str) -> None:
        self.out, self.owner = out, owner
        self.objects = ObjectStore(url)
        self.url = self.objects.url
        self._alive = hold_file(out / ALIVE)
        self._held: dict[str, int] = {}
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._heart: threading.Thread | None = None
        self._pulled: dict[str, bytes] = {}

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name the address, and not the scratch folder, in the sentences of errors."""
        try:
            yield
        except OpenAVSError as error:
            raise type(error)(str(error).replace(str(self.out), self.url)) from error

    def close(self) -> None:
        """Release the claims of this process."""
        self._closed.set()
        with suppress(StoreError):  # then they are taken over some time later
            for name in list(self._held):
                self.release(name)
        self._alive.close()

    def end(self) -> bool:
        """Remove the claims of this run, whose workers have ended, and what ended runs left; False: the store is away.

        A run that ends between a completion object and the rest of its requests leaves its claim and the shard's
        journal.
        """
        try:
            for name, seen in self._look().items():
                if self._is_own(name, seen) or self._has_ended(name, seen):
                    self.objects.remove([_claim_name(name, seen.number)])
            journals = self.objects.find(JOURNAL)
            done = {path.stem for path in (self.out / SHARDS).glob("*.json")}
            self.objects.remove([name for name in journals if name.split("/")[2] in done])
        except StoreError:
            return False
        return True

    # ---------------------------------------------------------------------------------------------------- claims

    def claim(self, name: str, *, wait: bool = False) -> bool:
        """Take a claim; False if another run has it. A claim of this run, by any of its processes, is taken again."""
        while not self._claim(name):
            if not wait:
                return False
            time.sleep(POLL)
        return True

    def release(self, name: str) -> None:
        """Release a claim of this process."""
        with self._lock:  # not while it is being renewed, which would make it again
            number = self._held.pop(name, None)
            if number is not None:
                self.objects.remove([_claim_name(name, number)])

    @contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """Hold a claim inside the block; waits until it is free."""
        self.claim(name, wait=True)
        try:
            yield
        finally:
            self.release(name)

    def others_at_work(self) -> bool:
        """Return whether another run holds a claim; takes up to `LEASE` seconds where runs have ended with claims."""
        first = {name: seen.state for name, seen in self._held_by_others().items()}
        while (held := self._held_by_others()) and all(first.get(name) == held[name].state for name in held):
            time.sleep(POLL)
        return bool(held)

    def _claim(self, name: str) -> bool:
        seen = self._look().get(name)
        own = seen is not None and self._is_own(name, seen)
        if seen is not None and not own and not self._has_ended(name, seen):
            return False
        number = 0 if seen is None else seen.number + (not own)
        if not own and not self.objects.create(_claim_name(name, number), self._sign()):
            return False
        if seen is not None and not own:
            logger.warning("the claim %s of a run that has ended is taken over", name)
            self.objects.remove([_claim_name(name, seen.number)])
        with self._lock:
            self._held[name] = number
        if self._heart is None:
            self._heart = threading.Thread(target=self._renew, name="openavs-claims", daemon=True)
            self._heart.start()
        return True

    def _held_by_others(self) -> dict[str, _Seen]:
        found = self._look().items()
        return {name: seen for name, seen in found if not self._is_own(name, seen) and not self._has_ended(name, seen)}

    def _look(self) -> dict[str, _Seen]:
        """List the claims; of several numbers of one name the highest counts."""
        found: dict[str, _Seen] = {}
        for path, info in self.objects.find(CLAIMS).items():
            name, _, number = path.removeprefix(f"{CLAIMS}/").rpartition(".")
            if number.isdigit() and (name not in found or found[name].number < int(number)):
                state = repr(sorted((key, str(value)) for key, value in info.items()))
                known = self._seen.get(name)
                same = known is not None and (known.number, known.state) == (int(number), state)
                found[name] = known if known and same else _Seen(int(number), state, time.monotonic())
        self._seen = found
        return found

    def _content(self, name: str, seen: _Seen) -> Mapping[str, Any]:
        if seen.content is None:
            try:
                content = parse_json(self.objects.get(_claim_name(name, seen.number)))
            except (FileNotFoundError, ValueError):  # released meanwhile
                content = None
            seen.content = content if isinstance(content, dict) else {}
        return seen.content

    def _is_own(self, name: str, seen: _Seen) -> bool:
        return self._held.get(name) == seen.number or self._content(name, seen).get("owner") == self.owner

    def _has_ended(self, name: str, seen: _Seen) -> bool:
        """Return whether the owner of a claim has ended, or is taken to have."""
        alive = Path(str(self._content(name, seen).get("scratch", ""))) / ALIVE
        return time.monotonic() - seen.since > LEASE or (alive.is_file() and not is_held(alive))

    def _sign(self) -> bytes:
        """Return the content of a claim, which is another one each time."""
        mark = {"owner": self.owner, "scratch": str(self.out), "mark": secrets.token_hex(8)}
        return json.dumps(mark).encode("ascii")

    def _renew(self) -> None:
        while not self._closed.wait(LEASE / BEATS):
            with self._lock, suppress(OpenAVSError):  # the loop over clips reports a store that is gone
                self.objects.put({_claim_name(name, number): self._sign() for name, number in self._held.items()})

    # --------------------------------------------------------------------------------------------------- journal

    def pull_journal(self, shard: int) -> bytes:
        """Return the journal of a shard, one line for each clip that was begun or is finished."""
        return b"".join(self.objects.get_all(list(self.objects.find(_journal_name(shard)))).values())

    def write_line(self, shard: int, clip: str, line: bytes | None) -> None:
        """Write the line of a clip in the journal of a shard; None: remove it."""
        name = f"{_journal_name(shard)}/{clip}.json"
        if line is None:
            self.objects.remove([name])
        else:
            self.objects.put({name: line})

    # ----------------------------------------------------------------------------------------------------- files

    def pull(self, *names: str) -> None:
        """Copy objects to the scratch folder, as far as they exist."""
        for name, content in self.objects.get_all(names).items():
            self._pulled[name] = content
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.out / name).write_bytes(content)

    def push(self, *names: str) -> None:
        """Write files of the scratch folder to the store, as far as they exist."""
        for name in names:
            if (self.out / name).is_file():
                self.objects.upload(self.out / name, name)

    def push_changed(self, name: str, *, new: bool = False) -> bool:
        """Write a file to the store unless it is as it was pulled; `new`: only if the store has none. False: it has."""
        content = (self.out / name).read_bytes()
        if new:
            return self.objects.create(name, content)
        if self._pulled.get(name) != content:
            self.objects.put({name: content})
        return True

    def publish(self, files: Collection[str]) -> None:
        """Write the files of a clip to the store, and remove them from the scratch folder."""
        self.objects.put({name: (self.out / name).read_bytes() for name in files})
        for name in files:
            remove_file(self.out / name, self.out)

    def lost(self, entries: Mapping[str, Mapping[str, str]], *, verify: bool) -> list[str]:
        """Return the clips with files that the store lacks or has with another size or, with `verify`, content."""
        folders = {name.rpartition("/")[0] for files in entries.values() for name in files}
        sizes = {name: info["size"] for folder in sorted(folders) for name, info in self.objects.find(folder).items()}
        found = [
            clip
            for clip, files in entries.items()
            if any(str(sizes.get(name)) != known.partition(":")[0] for name, known in files.items())
        ]
        for clip, files in entries.items() if verify else ():
            if clip not in found:
                contents = self.objects.get_all(files)
                found += [clip] if {name: stamp(own) for name, own in contents.items()} != dict(files) else []
        return found

    # ---------------------------------------------------------------------------------------------------- shards

    def pull_completions(self) -> None:
        """Bring the completion objects, and the times of their clips, to the scratch folder."""
        there = {name for name in self.objects.find(SHARDS) if name.endswith(".json")}
        folder = self.out / SHARDS
        here = {f"{SHARDS}/{path.name}" for path in folder.iterdir()} if folder.is_dir() else set()
        for name in here - there:  # reopened by another run
            (self.out / name).unlink(missing_ok=True)
        new = sorted(there - here)
        self.pull(*(name.replace(SHARDS, TIMINGS) for name in new))
        self.pull(*new)

    def complete(self, shard: int) -> None:
        """Write the completion object of a shard, and remove its journal."""
        name = f"{shard:06d}.json"
        logs = [f"log/{path.name}" for path in (self.out / "log").glob(f"*-{os.getpid()}.*")]
        self.push(*logs, f"{TIMINGS}/{name}")
        self.push(f"{SHARDS}/{name}")
        self.objects.remove(self.objects.find(_journal_name(shard)))

    def clear(self) -> None:
        """Remove the objects of an earlier job: those that its records name, and the records."""
        self.pull_completions()
        records = [path.read_bytes() for path in sorted((self.out / SHARDS).glob("*.json"))]
        records += self.objects.get_all(list(self.objects.find(JOURNAL))).values()
        for files in map(_files_of, records):
            self.objects.remove(files)
        for folder in ("work/shards", JOURNAL, "log"):
            self.objects.remove(self.objects.find(folder))
        self.objects.remove(("work/models.json", "work/sizes", "index.jsonl", "index.parquet", "run.json"))
        self.objects.remove(("work/manifest.json", "manifest.jsonl"))
        self._pulled.clear()
        shutil.rmtree(self.out / "work", ignore_errors=True)


def _files_of(record: bytes) -> list[str]:
    """Return the files that a completion object or a line of a journal names; none if it is damaged."""
    with suppress(ValueError):
        data = parse_json(record)
        files = data.get("files") if isinstance(data, dict) else None
        if isinstance(files, dict):
            entries = files.values() if "rows" in data else [files]
            return [name for own in entries if isinstance(own, dict) for name in own if is_object_name(name)]
    return []


def _private_folder() -> Path:
    """Make the folder of the scratch folders, which other users of the machine must not be able to change.

    Raises:
        InputError: there is something of another user in its place.
    """
    user = os.getuid() if hasattr(os, "getuid") else ""
    top = Path(tempfile.gettempdir()) / f"openavs-jobs-{user}"
    top.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_own(top):
        raise InputError(f"{top} belongs to another user, or is a link; set TMPDIR to another folder")
    return top


def _claim_name(name: str, number: int) -> str:
    return f"{CLAIMS}/{name}.{number}"


def _journal_name(shard: int) -> str:
    return f"{JOURNAL}/{shard:06d}"
