"""Locks: which process works on which shard, when several share a result folder.

Locks are byte-range locks of the operating system on one empty file, `OUT/.lock`: byte 0 is the job as a whole, byte 1
the index, byte 2 the job-level files (`run.json`, `work/models.json`), byte 3 + n shard n. They end with the process
that holds them, however it ends: there are no stale locks, no heartbeat and no clock. Between machines they need a file
system that keeps such locks (NFS 4, Lustre with `flock`, GPFS); where none are kept, a warning says so, and parts of a
job have to be separated by `--shard-range`. Even two processes on one shard would write the same bytes.

A result folder on an object store has claims instead (`job_store.py`): of its index and its shards. The folder as a
whole is claimed by `output_dir.py` while it is opened.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openavs.jobs.job_store import store_of

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: run one job at a time, as the documentation says
    fcntl = None

logger = logging.getLogger(__name__)

NAME = ".lock"
JOB, INDEX, RUN, FIRST_SHARD = 0, 1, 2, 3
_HELD_BY_ANOTHER = {errno.EACCES, errno.EAGAIN}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP}

# Closing any handle of a file drops all of the process's locks on it: there is one handle per file, and it stays open.
_handles: dict[Path, int] = {}


def claim(out: Path, byte: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Take a lock of a result folder, or change it between shared and exclusive; False if another process has it.

    Raises:
        OSError: the lock file cannot be opened for writing.
    """
    if (store := store_of(out)) is not None:
        return byte in (JOB, RUN) or store.claim(_claim_name(byte), wait=wait)
    if fcntl is None:
        return True
    handle = _handle(out)
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.lockf(handle, kind, 1, byte)
    except OSError as error:
        if error.errno in _HELD_BY_ANOTHER:
            return False
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "the file system of %s keeps no locks: run one job at a time on it, or split it by --shard-range", out
        )
    return True


def release(out: Path, byte: int) -> None:
    """Release a lock."""
    if (store := store_of(out)) is not None:
        store.release(_claim_name(byte))
        return
    if fcntl is not None and out in _handles:
        try:
            fcntl.lockf(_handles[out], fcntl.LOCK_UN, 1, byte)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise


@contextmanager
def claimed(out: Path, byte: int, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock inside the block; yields whether it was free."""
    taken = claim(out, byte, wait=wait)
    try:
        yield taken
    finally:
        if taken:
            release(out, byte)


@contextmanager
def locked_file(path: Path) -> Iterator[None]:
    """Hold an exclusive lock of a file of its own, which is created, inside the block; waits until it is free.

    Unlike the byte-range locks of a result folder it also holds between threads of one process.

    Raises:
        OSError: the file cannot be opened for writing.
    """
    handle = _lock(path)
    try:
        yield
    finally:
        os.close(handle)


def _lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                raise
            logger.warning("the file system of %s keeps no locks: change one clip at a time on it", path.parent)
        if _is_file(handle, path):
            return handle
        os.close(handle)  # the folder was removed and made again


def _claim_name(byte: int) -> str:
    """Return the name of the claim that takes the place of a lock on an object store."""
    return "index" if byte == INDEX else f"{byte - FIRST_SHARD:06d}"


def _handle(out: Path) -> int:
    path = out / NAME
    handle = _handles.get(out)
    if handle is not None and not _is_file(handle, path):
        os.close(handle)  # the folder was removed and made again
        handle = None
    if handle is None:
        handle = _handles[out] = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    return handle


def _is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
