"""Who works on what, when several processes share a result folder.

Claims are byte-range locks of the operating system on one empty file, `OUT/.lock`: byte 0 is the job as a whole, byte 1
the index, byte 2 what tells of the job (`run.json`, `models.json`), byte 3 + n shard n. They end with the process that
holds them, however it ends, so there is no stale claim, no heartbeat and no clock in this. Between machines they need a
file system that keeps such locks (NFS 4, Lustre with `flock`, GPFS); where none are kept, a warning says so, and parts
of a job have to be kept apart by `--shard-range i/n`. Even two processes on one shard would write the same bytes.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: one job at a time, which the documentation says
    fcntl = None

log = logging.getLogger(__name__)

NAME = ".lock"
JOB, INDEX, FACTS, FIRST_SHARD = 0, 1, 2, 3
_HELD_BY_ANOTHER = {errno.EACCES, errno.EAGAIN}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP}

# Closing any handle of a file drops all of the process's locks on it: there is one handle per file, and it stays open.
_handles: dict[Path, int] = {}


def claim(out: Path, byte: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Takes a lock of a result folder, or turns it from shared to exclusive and back; False if another has it.

    OSError if its file cannot be opened for writing.
    """
    if fcntl is None:
        return True
    handle = _handle(out)
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.lockf(handle, kind, 1, byte)
    except OSError as problem:
        if problem.errno in _HELD_BY_ANOTHER:
            return False
        if problem.errno not in _NO_LOCKS:
            raise
        log.warning(
            "the file system of %s keeps no locks: run one job at a time on it, or split it by --shard-range", out
        )
    return True


def release(out: Path, byte: int) -> None:
    """Gives a lock back."""
    if fcntl is not None and out in _handles:
        try:
            fcntl.lockf(_handles[out], fcntl.LOCK_UN, 1, byte)
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:
                raise


@contextmanager
def claimed(out: Path, byte: int, *, wait: bool = False) -> Iterator[bool]:
    """Holds a lock while inside; says whether it was to be had."""
    taken = claim(out, byte, wait=wait)
    try:
        yield taken
    finally:
        if taken:
            release(out, byte)


def _handle(out: Path) -> int:
    path = out / NAME
    handle = _handles.get(out)
    if handle is not None and not _is_file(handle, path):
        os.close(handle)  # the folder was removed and made anew
        handle = None
    if handle is None:
        handle = _handles[out] = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    return handle


def _is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
