"""Opening a result folder for a job: one that is new, to be gone on with, shared with another, or to be cleared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.labeling.completion import committed, invalidate, read_mark
from openavs.labeling.locks import JOB, claim
from openavs.labeling.manifest import (
    JobRequest,
    Manifest,
    check_manifest,
    make_manifest,
    read_manifest,
    replaced_files,
    update_sizes,
)
from openavs.results.run_folder import remove_results
from openavs.results.serialization import refuse_links
from openavs.utils.text import pluralize

_PLAN = ("plan.json", "plan.jsonl", "plan.sizes")

# In the order of their removal: marks first, so that nothing counts as done, the plan last.
_OURS = (
    "shards",
    "index.jsonl",
    "index.parquet",
    "run.json",
    "models.json",
    "labels",
    "clips",
    "work",
    "log",
    *_PLAN,
)

_FOLDERS = frozenset(("shards", "labels", "clips", "work", "log"))


def open_folder(out: Path, wish: JobRequest, *, overwrite: bool = False, retry_failed: bool = False) -> Manifest:
    """The plan to work by; the folder stays claimed while this process lives, shared with jobs of the same plan.

    Args:
        overwrite: Remove what an earlier job left.
        retry_failed: Forget the clips that failed, so that they are run again, with the files that they have now.

    Raises:
        InputError: the folder cannot be made, holds something else or another job's plan, or is in use where it has to
            be ours alone.
    """
    if not _make_and_claim(out):
        if overwrite or retry_failed:
            what = "--overwrite" if overwrite else "--retry-failed"
            raise InputError(f"another job is at work on {out}, and {what} needs it alone; wait for it or stop it")
        claim(out, JOB, shared=True, wait=True)  # until its plan is there
        plan = read_manifest(out)
        if plan is None:
            raise InputError(f"another job has just begun on {out} and ended without a plan; run the same again")
        _refuse_strange(out)
        plan = check_manifest(out, plan, wish)
        _settle_files(out, plan, wish)
        return plan
    plan = _open_alone(out, wish, overwrite)
    _settle_files(out, plan, wish, retry_failed)  # first: marks that are taken back no longer say who failed
    if retry_failed:
        retry(out, plan)
    claim(out, JOB, shared=True)
    return plan


def failed(out: Path, plan: Manifest) -> set[str]:
    """The clips that failed, in shards that are committed."""
    marks = (read_mark(out, shard, plan.key) for shard in committed(out))
    return {id for mark in marks if mark is not None for id in failed_in(mark)}


def failed_in(mark: Mapping[str, Any]) -> list[str]:
    """The clips of a mark that failed."""
    return [row["id"] for row in mark["rows"] if row["status"] == "failed"]


def _settle_files(out: Path, plan: Manifest, wish: JobRequest, retry_failed: bool = False) -> None:
    """Refuses files that were replaced since the job was begun; those of clips that failed are taken for a retry."""
    replaced = replaced_files(out, wish)
    if not replaced:
        return
    may_differ = failed(out, plan) if retry_failed else set()
    others = [id for id in replaced if id not in may_differ]
    if others:
        raise InputError(
            f"{pluralize(len(others), 'clip')} of {out} changed in size since, such as {others[0]}; --retry-failed "
            "takes new files of clips that failed, for others give another --out or start anew with --overwrite"
        )
    update_sizes(out, wish)


def retry(out: Path, plan: Manifest) -> int:
    """Takes back the shards in which clips failed; what is done in them stays. Returns the number of clips."""
    count = 0
    for shard in sorted(committed(out)):
        mark = read_mark(out, shard, plan.key)
        if mark is not None and (again := failed_in(mark)):
            count += len(again)
            invalidate(out, mark, again)
    return count


def _open_alone(out: Path, wish: JobRequest, overwrite: bool) -> Manifest:
    refuse_links(*(out / name for name in _OURS))
    if overwrite:
        _clear(out)
    plan = read_manifest(out)
    if plan is not None:
        _refuse_strange(out)
        return check_manifest(out, plan, wish)
    if any((out / name).exists() for name in ("clips", "labels", "shards", "run.json")):
        raise InputError(f"{out} holds other results, of no job; give another --out, or remove them with --overwrite")
    _refuse_strange(out)
    return make_manifest(out, wish)


def _clear(out: Path) -> None:
    """Removes what a job or another command wrote, and nothing else.

    Raises:
        InputError: files that no command wrote are in the place of a job's.
    """
    if not any((out / name).exists() for name in _PLAN):
        remove_results(out)
        for name in (name for name in _OURS if (out / name).exists()):
            raise InputError(f"{out / name} is there, and no job wrote it; give another --out, or remove it yourself")
    for name in _OURS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse_strange(out: Path) -> None:
    """Raises InputError if something else than a file is in the place of a file of the job, or than a folder."""
    for name in _OURS:
        path, is_folder = out / name, name in _FOLDERS
        if os.path.lexists(path) and not (path.is_dir() if is_folder else path.is_file()):
            kind = "folder" if is_folder else "regular file"
            raise InputError(f"{path} is no {kind}; remove it, give another --out or start anew with --overwrite")


def _make_and_claim(out: Path) -> bool:
    """Makes the folder and claims it; False if another job has it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the output folder {out} ({error.strerror}); give another --out") from error
    try:
        return claim(out, JOB)
    except OSError as error:
        sentence = f"the output folder {out} cannot be written ({error.strerror}); change its permissions"
        raise InputError(f"{sentence} or give another --out") from error
