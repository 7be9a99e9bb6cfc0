"""The one folder that a server writes into: it goes when the server ends, and at the next start if that was killed."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows, where what a killed server left stays until the temporary folder is emptied
    fcntl = None

log = logging.getLogger(__name__)

PREFIX = "openavs-serve-"


@contextmanager
def server_folder(where: Path | None = None) -> Iterator[Path]:
    """A private folder (mode 0700) for as long as the block lasts; those of servers that are no more are removed."""
    parent = where or Path(tempfile.gettempdir())
    _remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    try:
        with (folder / "lock").open("w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_old(folder: Path, age: float) -> None:
    """Removes the files below a folder that were made or renamed more than `age` seconds ago, and emptied folders.

    What a visit works with is safe: it has links of its own to them (see `Session.keep`).
    """
    before = time.time() - age
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
        with contextlib.suppress(OSError):  # gone by now, or a folder that is not empty
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif path.lstat().st_mtime < before:
                path.unlink()


def _remove_abandoned(parent: Path) -> None:
    """Folders of ours whose lock nobody holds."""
    if fcntl is None:
        return
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                log.info("removed %s, which a server had left behind", folder)
        except OSError:  # held by a running server, or just being made
            continue
