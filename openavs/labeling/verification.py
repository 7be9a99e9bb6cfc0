"""Compares the files of committed shards with their marks, and reopens shards whose files were lost or changed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from openavs.labeling.completion import committed, invalidate, read_mark
from openavs.labeling.locks import FIRST_SHARD, claimed
from openavs.utils.durable import is_intact

log = logging.getLogger(__name__)


def reopen_changed(out: Path, key: str, shards: Iterable[int], *, verify: bool = False) -> list[str]:
    """Reopens committed shards with files that are not as recorded; returns the clips that are to be made again.

    Args:
        shards: The shards to check; those without a mark are passed over.
        verify: Compare the content with its SHA-256 besides the existence and the size.

    Raises:
        OSError: a file cannot be read for another reason than its absence.
    """
    again: list[str] = []
    for shard in sorted(committed(out) & set(shards)):
        with claimed(out, FIRST_SHARD + shard) as free:
            mark = read_mark(out, shard, key) if free else None  # not free: another job has reopened it
            changed = changed_clips(out, mark, verify=verify) if mark is not None else []
            if mark is not None and changed:
                log.info("shard %d: the files of %s were lost or changed", shard, ", ".join(changed))
                invalidate(out, mark, changed)
                again += changed
    return again


def changed_clips(out: Path, mark: Mapping[str, Any], *, verify: bool = False) -> list[str]:
    """The clips of a mark whose files are not there as recorded."""
    top = f"{out}/"
    return [
        clip
        for clip, files in mark["files"].items()
        if not all(is_intact(top + path, stamp, verify=verify) for path, stamp in files.items())
    ]
