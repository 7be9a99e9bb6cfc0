"""What stages answered before: one small file per answer in a folder that many processes and machines may share.

Files and not a database, because the folder often lies on a network disk that a whole cluster mounts, where SQLite's
locks do not hold. A file is renamed into place whole, begins with a hash of its name and content and is checked when it
is read, so the worst that a crash, a full disk or two writers at once can do is to have a stage run again.

    ~/.cache/openavs/stages/limit                         bytes, if another limit than 5 GB was set
    ~/.cache/openavs/stages/v2/<2 hex>/<stage>-<62 hex>   256 folders by the first digits of the key

The whole stays near its limit without anybody counting it: keys are hashes, so each of the 256 folders gets an equal
share, and puts that the key itself chooses, one in so many that an eighth of a share is written between two of them,
bring the folder that they land in back under its share. What was used longest ago goes first.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from openavs.errors import InputError
from openavs.utils.fs import atomic_write

log = logging.getLogger(__name__)

FORMAT = 2  # 1 had no key in its hash
DEFAULT_LIMIT = 5_000_000_000
LEAST_LIMIT = 10_000_000
_FOLDERS = 256
_CHECKS_A_SHARE = 8
_BLOCK = 4096  # bytes that a disk spends on a file at least
_USED_AGAIN = 3600.0  # s within which a second use is not noted: a write for every read would be dear on NFS
_ABANDONED = 3600.0  # s after which a temporary file is one of a process that was killed
_NAME = re.compile(r"([a-z]+)-[0-9a-f]{62}")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class CacheEntry:
    """One answer on the disk: `size` in bytes as the disk counts them, `used` in seconds since 1970."""

    path: Path
    stage: str
    size: int
    used: float


def cache_folder() -> Path:
    """`$OPENAVS_CACHE/stages`, else `$XDG_CACHE_HOME/openavs/stages`, else `~/.cache/openavs/stages`."""
    own, shared = os.environ.get("OPENAVS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "openavs"
    return root.expanduser().absolute() / "stages"


class StageCache:
    """Answers by stage and key, a SHA-256 in hex; what an answer says is for its stage to know.

    A folder that cannot be read or written is a warning and no error: everything then is computed. `counts` are hits
    and misses of this object, by stage.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder).expanduser().absolute() if folder is not None else cache_folder()
        self.limit = _read_limit(self.folder)
        self.counts: Counter[tuple[str, str]] = Counter()
        self._complained = False

    def get(self, stage: str, key: str) -> bytes | None:
        """The answer, or None; a damaged one is removed."""
        content = self._read(stage, key)
        self.counts[stage, "misses" if content is None else "hits"] += 1
        return content

    def has(self, stage: str, key: str) -> bool:
        """Whether there is an answer, which may turn out to be damaged; it counts as no use."""
        return self._path(stage, key).exists()

    def put(self, stage: str, key: str, content: bytes) -> None:
        """Keeps an answer, unless it alone is more than a folder's share of the limit."""
        path, share = self._path(stage, key), self.limit // _FOLDERS
        data = _head(stage, key, content) + content
        if _on_disk(len(data)) > share:
            log.debug("an answer of the %s is too large for the cache (%d bytes)", stage, len(content))
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, data)
            puts_a_check = max(1, share // _CHECKS_A_SHARE // _on_disk(len(data)))
            if int(key[2:10], 16) % puts_a_check == 0:
                _shrink(_entries_of(path.parent), share)
        except OSError as problem:
            self._complain(problem)

    def forget(self, stage: str, key: str) -> None:
        """Removes an answer that its stage cannot read."""
        with contextlib.suppress(OSError):  # it is written anew anyway
            self._path(stage, key).unlink(missing_ok=True)

    def entries(self) -> Iterator[CacheEntry]:
        """All answers, those of older formats too, in no order."""
        for folder in sorted(self.folder.glob("v[0-9]*/[0-9a-f][0-9a-f]")):
            yield from _entries_of(folder)

    def prune(self, size: int) -> list[CacheEntry]:
        """Removes what was used longest ago until at most `size` bytes are left; returns what is gone."""
        return _shrink(self.entries(), size)

    def set_limit(self, size: int) -> None:
        """Sets the limit of the folder for all who use it, from their next start on."""
        if size < LEAST_LIMIT:
            raise InputError(f"the limit of a cache is at least {size_to_text(LEAST_LIMIT)}; to empty it, prune it")
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self.folder / "limit", f"{size}\n".encode())
        self.limit = size

    def _path(self, stage: str, key: str) -> Path:
        return self.folder / f"v{FORMAT}" / key[:2] / f"{stage}-{key[2:]}"

    def _read(self, stage: str, key: str) -> bytes | None:
        path = self._path(stage, key)
        try:
            with path.open("rb") as file:
                head, content = file.readline(), file.read()
                used = os.fstat(file.fileno()).st_mtime
            if head != _head(stage, key, content):
                log.warning("the cache entry %s is damaged; it is made anew", path)
                path.unlink(missing_ok=True)
                return None
            if abs(time.time() - used) > _USED_AGAIN:  # a clock may have been ahead
                os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as problem:
            self._complain(problem)
            return None
        return content

    def _complain(self, problem: OSError) -> None:
        if not self._complained:
            self._complained = True
            log.warning("the stage cache %s cannot be used (%s); everything is computed", self.folder, problem)


def size_to_bytes(text: str) -> int:
    """`5GB`, `500 MB`, `1.5T` or plain bytes, in powers of ten; InputError for anything else."""
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([kmgt]?)b?\s*", text.lower())
    if not found:
        raise InputError(f"{text!r:.40} is not a size; write it as in 5GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


def size_to_text(size: int) -> str:
    """5000000000 -> `5 GB`."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"


def _head(stage: str, key: str, content: bytes) -> bytes:
    """The first line of an entry; its hash covers the name of the entry as well as the content."""
    digest = hashlib.sha256(f"{stage} {key}\n".encode() + content).hexdigest()
    return f"openavs-cache {FORMAT} {digest}\n".encode()


def _write(path: Path, data: bytes) -> None:
    """A rename without a flush: what a power cut leaves of it is noticed by its hash."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _entries_of(folder: Path) -> Iterator[CacheEntry]:
    """The answers in one folder; temporary files that were left behind go, other people's files are not touched."""
    with os.scandir(folder) as found:
        for item in found:
            name = _NAME.fullmatch(item.name)
            left_behind = item.name.startswith(".") and item.name.endswith(".tmp")
            if not name and not left_behind:
                continue
            try:
                state = item.stat(follow_symlinks=False)
            except FileNotFoundError:  # pruned by another process
                continue
            if name:
                yield CacheEntry(folder / item.name, name[1], _on_disk(state.st_size), state.st_mtime)
            elif time.time() - state.st_mtime > _ABANDONED:
                (folder / item.name).unlink(missing_ok=True)


def _shrink(entries: Iterable[CacheEntry], size: int) -> list[CacheEntry]:
    oldest_first = sorted(entries, key=lambda entry: (entry.used, entry.path))
    excess = sum(entry.size for entry in oldest_first) - size
    gone = []
    for entry in oldest_first:
        if excess <= 0:
            break
        entry.path.unlink(missing_ok=True)
        excess -= entry.size
        gone.append(entry)
    return gone


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _read_limit(folder: Path) -> int:
    try:
        return max(int((folder / "limit").read_text()), LEAST_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return DEFAULT_LIMIT
    except (OSError, ValueError) as problem:
        raise InputError(f"{folder / 'limit'} cannot be read ({problem}); remove it and set it anew") from problem
