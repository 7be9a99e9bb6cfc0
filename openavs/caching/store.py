"""Content-addressed store of stage outputs: one small file per entry, in a folder that processes and machines share.

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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from openavs.errors import InputError
from openavs.utils.fs import atomic_write

logger = logging.getLogger(__name__)

FORMAT = 3
DEFAULT_LIMIT = 5_000_000_000
MIN_LIMIT = 10_000_000
_FOLDERS = 256
_PRUNES_PER_SHARE = 8  # of a folder, on average, while its share of the limit is written
_DISK_BLOCK = 4096  # bytes; the least that a file takes on a disk
_TOUCH_INTERVAL = 3600.0  # seconds between updates of an entry's time of use: a write per read would be slow on NFS
_TEMPORARY_LIFETIME = 3600.0  # seconds after which a temporary file is from a killed process
_NAME = re.compile(r"([a-z]+)-[0-9a-f]{62}")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class CacheEntry:
    """One entry: `size` in bytes on the disk, `used` (time of last use) in seconds since 1970."""

    path: Path
    stage: str
    size: int
    used: float


def cache_folder() -> Path:
    """Return `$OPENAVS_CACHE/stages`, else `$XDG_CACHE_HOME/openavs/stages`, else `~/.cache/openavs/stages`."""
    own, shared = os.environ.get("OPENAVS_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "openavs"
    return root.expanduser().absolute() / "stages"


class StageCache:
    """Bytes by stage and key (a SHA-256 in hex).

    A folder that cannot be read or written causes one warning, and every lookup is a miss. `counts` has the hits and
    misses of this object, by stage.

    Raises:
        InputError: the folder's limit file is malformed.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder).expanduser().absolute() if folder is not None else cache_folder()
        self.limit = _read_limit(self.folder)
        self.counts: Counter[tuple[str, str]] = Counter()
        self._warned = False

    def get(self, stage: str, key: str) -> bytes | None:
        """Return the content of an entry, or None; a damaged entry is removed."""
        content = self._read(stage, key)
        self.counts[stage, "misses" if content is None else "hits"] += 1
        return content

    def has(self, stage: str, key: str) -> bool:
        """Return whether an entry exists, without reading it or counting a use."""
        return self._path(stage, key).exists()

    def put(self, stage: str, key: str, content: bytes) -> None:
        """Store an entry, unless it is larger than a folder's share of the limit."""
        path, share = self._path(stage, key), self.limit // _FOLDERS
        data = _header(stage, key, content) + content
        size = _size_on_disk(len(data))
        if size > share:
            logger.debug("an output of the %s is too large for the cache (%d bytes)", stage, len(content))
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, data)
            # The key is a hash, so its digits are random: all processes together prune as often as they should.
            if int(key[2:10], 16) / 16**8 < _PRUNES_PER_SHARE * size / share:
                _prune(_entries_in(path.parent), share)
        except OSError as error:
            self._warn_once(error)

    def discard(self, stage: str, key: str) -> None:
        """Remove an entry that its stage cannot parse."""
        with contextlib.suppress(OSError):  # it is overwritten anyway
            self._path(stage, key).unlink(missing_ok=True)

    def entries(self) -> Iterator[CacheEntry]:
        """Yield all entries, including those of older formats, in no particular order."""
        for folder in sorted(self.folder.glob("v[0-9]*/[0-9a-f][0-9a-f]")):
            yield from _entries_in(folder)

    def prune(self, size: int) -> list[CacheEntry]:
        """Remove the least recently used entries until at most `size` bytes are left; returns those removed."""
        return _prune(self.entries(), size)

    def set_limit(self, size: int) -> None:
        """Set the folder's limit, for other processes from their next start.

        Raises:
            InputError: the limit is too small.
        """
        if size < MIN_LIMIT:
            raise InputError(f"the limit of a cache is at least {size_to_text(MIN_LIMIT)}; to empty it, prune it")
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self.folder / "limit", f"{size}\n".encode())
        self.limit = size

    def _path(self, stage: str, key: str) -> Path:
        return self.folder / f"v{FORMAT}" / key[:2] / f"{stage}-{key[2:]}"

    def _read(self, stage: str, key: str) -> bytes | None:
        path = self._path(stage, key)
        try:
            with path.open("rb") as file:
                header, content = file.readline(), file.read()
                used = os.fstat(file.fileno()).st_mtime
            if header != _header(stage, key, content):
                logger.warning("the cache entry %s is damaged and will be computed again", path)
                path.unlink(missing_ok=True)
                return None
            if abs(time.time() - used) > _TOUCH_INTERVAL:  # absolute, as another machine's clock may be ahead
                os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn_once(error)
            return None
        return content

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("the stage cache %s cannot be used (%s); nothing is cached", self.folder, error)


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


def _entries_in(folder: Path) -> Iterator[CacheEntry]:
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
            if name:
                yield CacheEntry(folder / item.name, name[1], _size_on_disk(state.st_size), state.st_mtime)
            elif time.time() - state.st_mtime > _TEMPORARY_LIFETIME:
                (folder / item.name).unlink(missing_ok=True)


def _prune(entries: Iterable[CacheEntry], size: int) -> list[CacheEntry]:
    oldest_first = sorted(entries, key=lambda entry: (entry.used, entry.path))
    excess = sum(entry.size for entry in oldest_first) - size
    removed = []
    for entry in oldest_first:
        if excess <= 0:
            break
        entry.path.unlink(missing_ok=True)
        excess -= entry.size
        removed.append(entry)
    return removed


def _size_on_disk(size: int) -> int:
    return -(-size // _DISK_BLOCK) * _DISK_BLOCK


def _read_limit(folder: Path) -> int:
    try:
        return max(int((folder / "limit").read_text()), MIN_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return DEFAULT_LIMIT
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'limit'} cannot be read ({error}); remove it and set the limit again") from error
