"""Content-addressed store of stage outputs: one small file per entry, in a folder that processes and machines share.

The place may also be on an object store, such as `s3://bucket/cache`, where an entry is an object of the same content.
Files instead of a database, because the folder is often on a network disk of a cluster, where SQLite's locks do not
work. A file is renamed into place, begins with a hash of its key and content and is checked when it is read. A crash, a
full disk or concurrent writers can therefore only cause a stage to run again.

    ~/.cache/openavs/stages/limit                         bytes, if the limit is not the default of 5 GB
    ~/.cache/openavs/stages/v3/<2 hex>/<stage>-<62 hex>   256 folders by the first digits of the key

Eviction needs no bookkeeping: keys are hashes, so each of the 256 folders has an equal share of the limit. A put prunes
the folder of its entry, least recently used first, with a chance in proportion to the entry's size.
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from openavs.errors import InputError, OpenAVSError
from openavs.utils.fs import atomic_write
from openavs.utils.objects import ObjectStore, is_object_url

logger = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = 3
DEFAULT_LIMIT = 5_000_000_000
MIN_LIMIT = 10_000_000
_FOLDERS = 256
_PRUNES_PER_SHARE = 8  # of a folder, on average, while its share of the limit is written
_DISK_BLOCK = 4096  # bytes; the least that a file takes on a disk
_TOUCH_INTERVAL = 3600.0  # seconds between updates of an entry's time of use: a write per read would be slow on NFS
_TEMPORARY_LIFETIME = 3600.0  # seconds after which a temporary file is from a killed process
_NAME = re.compile(r"([a-z]+)-[0-9a-f]{62}")
_OBJECT = re.compile(rf"v[0-9]+/[0-9a-f]{{2}}/{_NAME.pattern}")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class CacheEntry:
    """One entry: `size` in bytes (on a disk, in whole blocks), `used` (time of last use) in seconds since 1970.

    `path` is below the place of the cache. On an object store `used` is the time of writing.
    """

    path: Path
    stage: str
    size: int
    used: float


CachePlace = Path | str
"""A folder, or the address of an object store."""


def cache_place() -> CachePlace:
    """Return `$OPENAVS_CACHE/stages`, else `$XDG_CACHE_HOME/openavs/stages`, else `~/.cache/openavs/stages`."""
    own, shared = os.environ.get("OPENAVS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own and is_object_url(own):
        return f"{own.rstrip('/')}/stages"
    root = Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "openavs"
    return root.expanduser().absolute() / "stages"


class StageCache:
    """Bytes by stage and key (a SHA-256 in hex).

    A place that cannot be read or written causes one warning, and every lookup is a miss. `counts` has the hits and
    misses of this object, by stage.

    Raises:
        InputError: the folder's limit file is malformed, or the address of the object store.
    """

    def __init__(self, place: CachePlace | None = None) -> None:
        place = cache_place() if place is None else place
        files = _Objects(str(place)) if is_object_url(str(place)) else _Folder(Path(place).expanduser().absolute())
        self._files: _Folder | _Objects = files
        self.place = files.place
        self.counts: Counter[tuple[str, str]] = Counter()
        self._warned = False

    @property
    def limit(self) -> int | None:
        """The maximum size in bytes; None on an object store, which has no limit of its own."""
        return self._files.limit

    def get(self, stage: str, key: str) -> bytes | None:
        """Return the content of an entry, or None; a damaged entry is removed."""
        content = self._read(stage, key)
        self.counts[stage, "misses" if content is None else "hits"] += 1
        return content

    def has(self, stage: str, key: str) -> bool:
        """Return whether an entry exists, without reading it or counting a use."""
        try:
            return self._files.has(_entry_path(stage, key))
        except (OSError, OpenAVSError) as error:
            self._warn_once(error)
            return False

    def put(self, stage: str, key: str, content: bytes) -> None:
        """Store an entry, unless it is larger than a folder's share of the limit."""
        try:
            self._files.write(_entry_path(stage, key), _header(stage, key, content) + content)
        except (OSError, OpenAVSError) as error:
            self._warn_once(error)

    def discard(self, stage: str, key: str) -> None:
        """Remove an entry that its stage cannot parse."""
        with contextlib.suppress(OSError, OpenAVSError):  # it is overwritten anyway
            self._files.remove(_entry_path(stage, key))

    def entries(self) -> Iterator[CacheEntry]:
        """Yield all entries, including those of older formats, in no particular order."""
        return self._files.entries()

    def prune(self, size: int) -> list[CacheEntry]:
        """Remove the least recently used entries until at most `size` bytes are left; returns those removed."""
        return _prune(self._files, self.entries(), size)

    def set_limit(self, size: int) -> None:
        """Set the folder's limit, for other processes from their next start.

        Raises:
            InputError: the limit is too small, or the place is an object store.
        """
        if size < MIN_LIMIT:
            raise InputError(f"the limit of a cache is at least {size_to_text(MIN_LIMIT)}; to empty it, prune it")
        self._files.set_limit(size)

    def _read(self, stage: str, key: str) -> bytes | None:
        path = _entry_path(stage, key)
        try:
            data = self._files.read(path)
            header, end, content = data.partition(b"\n")
            if header + end != _header(stage, key, content):
                logger.warning("the cache entry %s/%s is damaged and will be computed again", self.place, path)
                self._files.remove(path)
                return None
        except FileNotFoundError:
            return None
        except (OSError, OpenAVSError) as error:
            self._warn_once(error)
            return None
        return content

    def _warn_once(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("the stage cache %s cannot be used (%s); nothing is cached", self.place, error)


class _Folder:
    """Entries in files below a folder, near a limit. Paths are relative to the folder."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.limit = _read_limit(place)

    def read(self, path: Path) -> bytes:
        with (self.place / path).open("rb") as file:
            data, used = file.read(), os.fstat(file.fileno()).st_mtime
        if abs(time.time() - used) > _TOUCH_INTERVAL:  # absolute, as another machine's clock may be ahead
            os.utime(self.place / path)
        return data

    def write(self, path: Path, data: bytes) -> None:
        size, share = _size_on_disk(len(data)), self.limit // _FOLDERS
        if size > share:
            logger.debug("the output %s is too large for the cache (%d bytes)", path, len(data))
            return
        whole = self.place / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        _write(whole, data)
        # The key is a hash, so its digits are random: all processes together prune as often as they should.
        if int(path.name.rpartition("-")[2][:8], 16) / 16**8 < _PRUNES_PER_SHARE * size / share:
            _prune(self, self._entries_in(whole.parent), share)

    def has(self, path: Path) -> bool:
        return (self.place / path).exists()

    def remove(self, *paths: Path) -> None:
        for path in paths:
            (self.place / path).unlink(missing_ok=True)

    def entries(self) -> Iterator[CacheEntry]:
        for folder in sorted(self.place.glob("v[0-9]*/[0-9a-f][0-9a-f]")):
            yield from self._entries_in(folder)

    def set_limit(self, size: int) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        atomic_write(self.place / "limit", f"{size}\n".encode())
        self.limit = size

    def _entries_in(self, folder: Path) -> Iterator[CacheEntry]:
        """Yield the entries of one folder and remove abandoned temporary files; other files are ignored."""
        with os.scandir(folder) as found:
            for item in found:
                name = _NAME.fullmatch(item.name)
                temporary = item.name.startswith(".") and item.name.endswith(".tmp")
                if not name and not temporary:
                    continue
                try:
                    state = item.stat(follow_symlinks=False)
                except FileNotFoundError:  # removed by another process
                    continue
                path = Path(item.path).relative_to(self.place)
                if name:
                    yield CacheEntry(path, name[1], _size_on_disk(state.st_size), state.st_mtime)
                elif time.time() - state.st_mtime > _TEMPORARY_LIFETIME:
                    self.remove(path)


class _Objects:
    """Entries in objects below an address. The store's own rules limit their number and age.

    After a fault no request is sent any more: each would wait for its retries.
    """

    limit = None

    def __init__(self, place: str) -> None:
        self.place = place
        self._store: ObjectStore | None = ObjectStore(place)

    def read(self, path: Path) -> bytes:
        return self._try(lambda store: store.get(path.as_posix()))

    def write(self, path: Path, data: bytes) -> None:
        self._try(lambda store: store.put({path.as_posix(): data}))

    def has(self, path: Path) -> bool:
        try:
            return self._try(lambda store: store.size(path.as_posix())) > 0
        except FileNotFoundError:
            return False

    def remove(self, *paths: Path) -> None:
        self._try(lambda store: store.remove(path.as_posix() for path in paths))

    def entries(self) -> Iterator[CacheEntry]:
        for name, facts in self._try(lambda store: store.find()).items():
            own = _OBJECT.fullmatch(name)
            written = facts.get("LastModified") or facts.get("mtime") or facts.get("created")
            if own:
                used = written.timestamp() if isinstance(written, datetime) else float(written or 0)
                yield CacheEntry(Path(name), own[1], int(facts["size"]), used)

    def set_limit(self, size: int) -> None:
        raise InputError(f"{self.place} has no limit; set a lifecycle rule of the bucket, or prune it")

    def _try(self, request: Callable[[ObjectStore], T]) -> T:
        if self._store is None:
            raise FileNotFoundError(self.place)
        try:
            return request(self._store)
        except OpenAVSError:
            self._store = None
            raise


def size_to_bytes(text: str) -> int:
    """Parse `5GB`, `500 MB`, `1.5T` or plain bytes, in powers of ten.

    Raises:
        InputError: the text is not a size.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([kmgt]?)b?\s*", text.lower())
    if not found:
        raise InputError(f"{text!r:.40} is not a size; write it as in 5GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2]])


def size_to_text(size: int) -> str:
    """Format a number of bytes: 5000000000 as `5 GB`."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"


def _header(stage: str, key: str, content: bytes) -> bytes:
    """Return the first line of an entry, with a hash of its stage, key and content."""
    digest = hashlib.sha256(f"{stage} {key}\n".encode() + content).hexdigest()
    return f"openavs-cache {FORMAT} {digest}\n".encode()


def _write(path: Path, data: bytes) -> None:
    """Write and rename a file without a flush: the hash reveals an entry that a power failure truncated."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _prune(files: _Folder | _Objects, entries: Iterable[CacheEntry], size: int) -> list[CacheEntry]:
    oldest_first = sorted(entries, key=lambda entry: (entry.used, entry.path))
    excess = sum(entry.size for entry in oldest_first) - size
    removed = []
    for entry in oldest_first:
        if excess <= 0:
            break
        excess -= entry.size
        removed.append(entry)
    files.remove(*(entry.path for entry in removed))
    return removed


def _entry_path(stage: str, key: str) -> Path:
    """Return the path of an entry below the place of its cache."""
    return Path(f"v{FORMAT}", key[:2], f"{stage}-{key[2:]}")


def _size_on_disk(size: int) -> int:
    return -(-size // _DISK_BLOCK) * _DISK_BLOCK


def _read_limit(folder: Path) -> int:
    try:
        return max(int((folder / "limit").read_text()), MIN_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return DEFAULT_LIMIT
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'limit'} cannot be read ({error}); remove it and set the limit again") from error
