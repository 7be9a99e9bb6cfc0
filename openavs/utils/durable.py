"""Files of a job: each appears whole under its name, and is on the disk when its shard's mark is.

Unlike `files.atomic_write`, a file's temporary name is known (`.<name>.part`): what a killed run left is written over
by the next one, so that nothing of an interruption remains. And files are flushed to the disk shard by shard, not one
by one, which costs a file system much less.

The few files that tell of the job as a whole are written by every process that works on it: each makes them under a
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

OF_THE_MACHINE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)
)
"""Errors of the system that are no clip's fault: they end the job, and running it again goes on."""

RACES = 100
"""So often a folder may go between its making and its first file."""


def write_whole(path: Path, data: bytes, *, durable: bool = False, part: Path | None = None) -> str:
    """Writes a file under a temporary name and renames it; returns the stamp of its content.

    `durable` flushes it and its name to the disk. Only one process at a time may write the same path, unless each
    gives a temporary name of its own as `part`.
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
    """The size and the SHA-256 of a file's content, as `<bytes>:<hex digits>`."""
    return f"{len(data)}:{hashlib.sha256(data).hexdigest()}"


def is_intact(path: str | Path, stamp: str, *, verify: bool) -> bool:
    """True if a regular file of the stamp's size is at `path` and, with `verify`, its content has the stamp's hash.

    A link is no regular file. OSError if the file may be there and cannot be read.
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


def write_hashed(path: Path, data: bytes, races: int = RACES) -> str:
    """`write_whole` into a folder that is made if it is not there.

    Another worker may remove a folder that both use while it is still empty (`remove_empty`), between its making and
    its first file: then it is made again, up to `races` times.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(path, data)
    except FileNotFoundError:
        if not races:
            raise
    return write_hashed(path, data, races - 1)


def sync_to_disk(paths: Iterable[Path]) -> None:
    """Flushes files and their folders to the disk."""
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
    """Removes a file, or what is in its place, and the folders above it, up to `top`, that are empty then."""
    _remove(path)
    path.with_name(f".{path.name}.part").unlink(missing_ok=True)
    remove_empty(path.parent, top)


def remove_folder(folder: Path, top: Path) -> None:
    """Removes a folder, or what is in its place, and those above it, up to `top`, that are empty then."""
    _remove(folder)
    remove_empty(folder.parent, top)


def _remove(path: Path) -> None:
    """Removes a file, a folder with all that is in it, or a link, but not what the link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def remove_empty(folder: Path, top: Path) -> None:
    """Removes empty folders from `folder` up to `top`, which stays. Another process may put something in meanwhile."""
    while folder != top and top in folder.parents:
        try:
            folder.rmdir()
        except FileNotFoundError:  # another process was quicker; its parent may be empty, too
            pass
        except OSError:  # not empty
            return
        folder = folder.parent
