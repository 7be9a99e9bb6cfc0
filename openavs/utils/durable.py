"""Durable files of a job: each is complete under its name, and on disk before its shard's completion file is.

Unlike in `fs.atomic_write`, the temporary name is fixed (`.<name>.part`), so that a run overwrites the leftovers of a
killed one. Files are flushed to disk shard by shard, which costs a file system much less than one by one.

The few files about the job as a whole are written by every process that works on it; each process uses a temporary
name of its own in `OUT/log`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from openavs.utils.fs import sync_folder

FATAL_ERRNOS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
)
"""System errors that are not a clip's fault: they end the job; running it again resumes."""

MAX_RETRIES = 100
"""Maximum retries when a folder disappears between its creation and its first file."""


def write_whole(path: Path, data: bytes, *, durable: bool = False, part: Path | None = None) -> str:
    """Write a file under a temporary name, rename it, and return the stamp of its content.

    Args:
        path: the file.
        data: its content.
        durable: flush the file and its folder to disk.
        part: the temporary name; needed if several processes write the same path at a time.
    """
    part = part or path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)
    return stamp(data)


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
        if not S_ISREG(found.st_mode) or str(found.st_size) != size:
            return False
        if not verify:
            return True
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except (FileNotFoundError, NotADirectoryError):
        return False


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
