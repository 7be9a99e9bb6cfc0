"""Filesystem helpers: atomic and durable writes, bounded reads, content stamps, and safe ids for folder names.

`atomic_write` flushes each file to disk under a random temporary name, so two processes may write one file at a time.
`write_whole` and `write_hashed` write the files of clips: their temporary name is fixed (`.<name>.part`), so that a run
overwrites the leftovers of a killed one, and they are flushed shard by shard with `sync_to_disk`, which costs a file
system much less than one by one.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

from openavs.errors import InputError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LONGEST_ID = 120  # characters
LONGEST_ID_BYTES = 200  # file systems stop at 255 bytes, and a temporary name adds some
_FORBIDDEN = frozenset('/\\<>:"|?*')  # the last seven are forbidden on Windows

FATAL_ERRNOS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
)
"""System errors that are not a clip's fault: they end the job; running it again resumes."""

MAX_RETRIES = 100
"""Maximum retries when a folder disappears between its creation and its first file."""


# ------------------------------------------------------------------------------------------------------------- writing


def atomic_write(path: Path, data: bytes) -> None:
    """Write a file atomically: a reader, also after a crash, gets the old content or the new one, never a part.

    The bytes go to a temporary file in the same folder, are flushed to disk, and the file is renamed.
    """
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp creates private files; results are shared
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it is renamed to `path` on success and removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes, *, part: Path | None = None) -> str:
    """Write a file under a temporary name, rename it, and return the stamp of its content.

    Args:
        path: the file.
        data: its content.
        part: the temporary name; needed if several processes write the same path at a time.
    """
    part = part or path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return stamp(data)


def write_hashed(path: Path, data: bytes, retries: int = MAX_RETRIES) -> str:
    """Write a file with `write_whole`, creating its folder if necessary.

    Another worker may remove a shared folder that is still empty (`remove_empty`), between its creation and its first
    file. The folder is then created again, up to `retries` times.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(path, data)
    except FileNotFoundError:
        if not retries:
            raise
    return write_hashed(path, data, retries - 1)


def sync_to_disk(paths: Iterable[Path]) -> None:
    """Flush files and their folders to disk."""
    folders: set[Path] = set()
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        folders.update((path.parent, path.parent.parent))
    for folder in sorted(folders):
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut; no-op on Windows, which cannot."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hold_file(path: Path) -> IO[bytes]:
    """Make a file, if there is none, and lock it until the returned one is closed; others may hold it, too."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
        if fcntl is None:
            return file
        fcntl.flock(file, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # `remove_unheld` was faster


def is_held(path: Path) -> bool:
    """Return whether a process holds a file; True where that cannot be known, False if there is no file."""
    try:
        with path.open("rb") as file:
            return not _lock_alone(file)
    except FileNotFoundError:
        return False


def remove_unheld(folder: Path, name: str) -> bool:
    """Remove a folder whose file `name` no process holds; one without such a file stays. Returns whether it was."""
    with suppress(FileNotFoundError, NotADirectoryError), (folder / name).open("rb") as file:
        if _lock_alone(file):
            shutil.rmtree(folder, ignore_errors=True)
            return True
    return False


def is_own(path: Path) -> bool:
    """Return whether a path belongs to this user and is not a link; True on Windows, which has no such numbers."""
    return not hasattr(os, "getuid") or (not path.is_symlink() and path.stat().st_uid == os.getuid())


def _lock_alone(file: IO[bytes]) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return fcntl is not None


# ------------------------------------------------------------------------------------------------------------- reading


def is_missing(path: str | Path) -> bool:
    """Return True if the path cannot exist; False for a file that exists but cannot be accessed."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return True
    except OSError:
        return False
    return False


def refuse_address(path: str | Path) -> None:
    """Raise InputError for an address such as https://...; a `Path` made of one has lost a slash."""
    scheme, colon, rest = str(path).partition(":/")
    if colon and len(scheme) > 1 and scheme.isalnum() and is_missing(path):
        address = f"{scheme}://{rest.lstrip('/')}"
        raise InputError(f"{address} is an address, and openavs reads files only; download it and name the file")


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the path is a folder, a link or a FIFO; opening a FIFO would block.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError("it is not a regular file")
    return path.read_bytes()


class BoundedFile(io.FileIO):
    """A regular file for parsers that trust headers: a read allocates no more than the rest of the file.

    The header of a small PNG or tar may claim 8 GB. `most` bounds a single read of a file that really is large.
    """

    def __init__(self, path: Path, most: int = 1 << 28) -> None:
        super().__init__(path)
        self._size, self._most = path.stat().st_size, most

    def read(self, size: int | None = -1, /) -> bytes:
        """Read like `FileIO.read`, but never return None: regular files do not block."""
        left = min(max(self._size - self.tell(), 0), self._most)
        return super().read(left if size is None or size < 0 else min(size, left)) or b""


def stamp(data: bytes) -> str:
    """Return the size and the SHA-256 of a file's content, as `<bytes>:<hex digits>`."""
    return f"{len(data)}:{hashlib.sha256(data).hexdigest()}"


def stamp_file(path: Path) -> str:
    """Return the stamp of a file that is written already."""
    with path.open("rb") as file:
        return f"{os.fstat(file.fileno()).st_size}:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def is_intact(path: str | Path, stamp: str, *, verify: bool) -> bool:
    """Return whether `path` is a regular file of the stamp's size and, with `verify`, of its hash.

    Links are not regular files.

    Raises:
        OSError: the file may exist but cannot be read.
    """
    try:
        found = os.lstat(path)
        size, _, digest = stamp.partition(":")
        if not stat.S_ISREG(found.st_mode) or str(found.st_size) != size:
            return False
        if not verify:
            return True
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except (FileNotFoundError, NotADirectoryError):
        return False


# ------------------------------------------------------------------------------------------------------------ removing


def remove_file(path: Path, top: Path) -> None:
    """Remove a file, or a folder or link in its place, and then the empty folders above it, below `top`."""
    _remove(path)
    path.with_name(f".{path.name}.part").unlink(missing_ok=True)
    remove_empty(path.parent, top)


def remove_folder(folder: Path, top: Path) -> None:
    """Remove a folder, or a file or link in its place, and then the empty folders above it, below `top`."""
    _remove(folder)
    remove_empty(folder.parent, top)


def _remove(path: Path) -> None:
    """Remove a file, a folder with its content, or a link but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def remove_empty(folder: Path, top: Path) -> None:
    """Remove the empty folders from `folder` upward, below `top`. Other processes may add files at the same time."""
    while folder != top and top in folder.parents:
        try:
            folder.rmdir()
        except FileNotFoundError:  # removed by another process; the parent may be empty too
            pass
        except OSError:  # not empty
            return
        folder = folder.parent


# ----------------------------------------------------------------------------------------------------------------- ids


def safe_id(name: str, *, taken: Collection[str] = (), origin: str | None = None) -> str:
    """Return a clip id for a name (a file's stem): one path component, printable, at most 120 characters.

    A valid name is returned unchanged. A name that had to be changed, or that is `taken`, gets a short hash of `origin`
    (the file's path; by default the name), so that different files never share an id. The function is idempotent.
    """
    clean = _clean(name)
    if clean == name and _fits(clean) and not _is_taken(clean, taken):
        return clean
    marked = (_marked(clean, f"{name}\0{origin or name}\0{salt or ''}") for salt in count())
    return next(id for id in marked if not _is_taken(id, taken))


def _marked(stem: str, seed: str) -> str:
    """Append a hash of the seed to the stem, shortened to fit."""
    digest = hashlib.sha256(seed.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    while not _fits(f"{stem}-{digest}"):
        stem = stem[:-1]
    return f"{stem}-{digest}"


def safe_ids(paths: Sequence[str | Path]) -> list[str]:
    """Return one id per path, from its stem, all different.

    Every path that shares its stem with another one gets the hash of its full path, in any order of the list; the
    same command therefore gives the same ids again.
    """
    full = [Path(os.path.abspath(path)) for path in paths]
    shared = Counter(path.stem.casefold() for path in full)
    ids: list[str] = []
    for path in full:
        same = [path.stem] if shared[path.stem.casefold()] > 1 else []
        ids.append(safe_id(path.stem, taken=[*same, *ids], origin=str(path)))
    return ids


def _clean(name: str) -> str:
    kept = "".join(c if c.isprintable() and c not in _FORBIDDEN else "_" for c in name)
    return kept.rstrip(" .").lstrip(" .-") or "clip"  # no hidden files, no "..", no names like options


def _fits(name: str) -> bool:
    return len(name) <= LONGEST_ID and len(name.encode("utf-8", "replace")) <= LONGEST_ID_BYTES


def _is_taken(name: str, taken: Collection[str]) -> bool:
    folded = name.casefold()  # some file systems do not distinguish upper and lower case
    return any(folded == other.casefold() for other in taken)
