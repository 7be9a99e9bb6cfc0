"""Opens a result folder for a job: a new one, one to resume, one shared with another process, or one to clear.

Files that openavs did not write are neither replaced nor removed.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.jobs.checkpoint import WORK, completed, failed_in, read_completion, reopen
from openavs.jobs.job_store import JobStore, store_of
from openavs.jobs.locks import FIRST_SHARD, JOB, claim, claimed
from openavs.jobs.manifest import (
    IDENTITY,
    LINES,
    SIZES,
    JobRequest,
    Manifest,
    check_manifest,
    extend_manifest,
    make_manifest,
    new_samples,
    read_manifest,
    read_samples,
    replaced_files,
    update_sizes,
)
from openavs.jobs.sample import Sample
from openavs.results.serialization import (
    clip_folder,
    is_clip_folder,
    is_corrected,
    refuse_links,
    refuse_other_folder,
)
from openavs.utils.fs import is_intact
from openavs.utils.text import pluralize

logger = logging.getLogger(__name__)

_MASKS = ("labels", "predictions")
# In the order of their removal: the records first, so that nothing counts as done, the list of clips last.
_OURS = (WORK, "index.jsonl", "index.parquet", "index.html", "run.json", *_MASKS, "clips", "log", LINES)
_INSIDE = (f"{WORK}/shards", IDENTITY, SIZES, f"{WORK}/models.json")
_FOLDERS = frozenset((WORK, f"{WORK}/shards", *_MASKS, "clips", "log"))


def open_folder(out: Path, request: JobRequest, *, overwrite: bool = False, retry_failed: bool = False) -> Manifest:
    """Open a result folder; it stays locked while the job runs, shared with jobs of the same manifest.

    Clips of an open manifest that failed are run again in any case.

    Args:
        out: The result folder.
        request: The contents of the manifest.
        overwrite: Remove the results of an earlier job.
        retry_failed: Run clips that failed again, with the files that they have now.

    Raises:
        InputError: the folder cannot be made, holds other files or another job's results, or is in use where the job
            needs it alone.
    """
    if (store := store_of(out)) is not None:
        return _open_on_store(store, request, overwrite, retry_failed)
    if not _make_and_claim(out):
        return _join(out, request, overwrite, retry_failed)
    manifest = _open_alone(out, request, overwrite)
    retry_failed |= manifest.is_open
    _settle_sizes(out, manifest, request, retry_failed)  # first: a reopened shard no longer says which clips failed
    if retry_failed:
        retry(out, manifest)
    claim(out, JOB, shared=True)
    return manifest


def _open_on_store(store: JobStore, request: JobRequest, overwrite: bool, retry_failed: bool) -> Manifest:
    """Open a result folder on an object store, one run at a time; its manifest is brought to the scratch folder.

    The run that creates `work/manifest.json` decides which job this is.
    """
    out, names = store.out, (SIZES, LINES, IDENTITY)
    with store.claimed("open"):
        if (overwrite or retry_failed) and store.others_at_work():
            raise _at_work(out, overwrite)
        store.pull(*names, f"{WORK}/models.json", "run.json")
        known = read_manifest(out)
        if overwrite and known is not None:
            store.clear()
            known = None
        if known is None and (found := store.objects.tops() & {"run.json", *_MASKS, "clips"}):
            raise InputError(f"{out} holds other results ({min(found)}); give another --out")
        manifest = make_manifest(out, request) if known is None else check_manifest(out, known, request)
        if known is not None:
            _settle_sizes(out, manifest, request, retry_failed)
        if retry_failed:
            retry(out, manifest)
        for name in names[:2]:
            store.push_changed(name)
        if not store.push_changed(IDENTITY, new=known is None):
            raise InputError(f"another job has just begun on {out}; give another --out, or run the same command again")
        store.claim(f"run-{store.owner}")
    return manifest


def _at_work(out: Path, overwrite: bool) -> InputError:
    option = "--overwrite" if overwrite else "--retry-failed"
    return InputError(f"another job is at work on {out}, and {option} needs it alone; wait for it or stop it")


def _join(out: Path, request: JobRequest, overwrite: bool, retry_failed: bool) -> Manifest:
    """Open a folder that another process works on."""
    if overwrite or retry_failed:
        raise _at_work(out, overwrite)
    claim(out, JOB, shared=True, wait=True)  # until its manifest is written
    manifest = read_manifest(out)
    if manifest is None:
        raise InputError(
            f"another job has just begun on {out} and ended without a manifest; run the same command again"
        )
    _refuse_foreign(out)
    manifest = check_manifest(out, manifest, request)
    if manifest.is_open and new_samples(out, manifest, request):
        raise InputError(f"another job is at work on {out}, and new clips need it alone; wait for it or stop it")
    _settle_sizes(out, manifest, request, False)
    return manifest


def _open_alone(out: Path, request: JobRequest, overwrite: bool) -> Manifest:
    refuse_links(*(out / name for name in (*_OURS, *_INSIDE)))
    if overwrite:
        clear_folder(out)
    manifest = read_manifest(out)
    if manifest is None and (found := _unknown_results(out)):
        raise InputError(f"{out} holds other results ({found}); give another --out, or remove them with --overwrite")
    _refuse_foreign(out)
    if manifest is None:
        _refuse_foreign_clips(out, request)
        return make_manifest(out, request)
    try:
        manifest = check_manifest(out, manifest, request)
    except InputError:
        if not (manifest.is_open and request.is_open) or any((out / "clips").glob("*/result.json")):
            raise
        clear_folder(out)  # every clip failed, so nothing is lost
        return make_manifest(out, request)
    if manifest.is_open and new_samples(out, manifest, request):
        _refuse_foreign_clips(out, request)
        manifest = extend_manifest(out, manifest, request)
    return manifest


def retry(out: Path, manifest: Manifest) -> int:
    """Reopen the requested shards in which clips failed; finished clips stay. Returns the number of failed clips."""
    count = 0
    for shard in sorted(completed(out) & set(manifest.requested)):
        completion = read_completion(out, shard, manifest.key)
        if completion is not None and (again := failed_in(completion)):
            count += len(again)
            reopen(out, completion, again)
    return count


def _settle_sizes(out: Path, manifest: Manifest, request: JobRequest, retry_failed: bool) -> None:
    """Refuse files that were replaced since the job was begun; new files of clips that failed are taken for a retry."""
    replaced = replaced_files(out, manifest, request)
    if not replaced:
        return
    may_differ = _unfinished(out, manifest) if manifest.is_open else _failed(out, manifest) if retry_failed else set()
    others = [id for id in replaced if id not in may_differ]
    if others:
        first = "" if manifest.is_open else "--retry-failed takes new files of clips that failed, for others "
        raise InputError(
            f"{pluralize(len(others), 'clip')} of {out} changed in size since, such as {others[0]}; {first}"
            "give another --out or start again with --overwrite"
        )
    update_sizes(out, manifest, request)


def _failed(out: Path, manifest: Manifest) -> set[str]:
    completions = (read_completion(out, shard, manifest.key) for shard in completed(out))
    return {id for completion in completions if completion is not None for id in failed_in(completion)}


def _unfinished(out: Path, manifest: Manifest) -> set[str]:
    """Return the clips of an open manifest that failed or were not run."""
    shards = completed(out) & set(manifest.requested)
    completions = (read_completion(out, shard, manifest.key) for shard in shards)
    done = {row["id"] for own in completions if own is not None for row in own["rows"] if row["status"] != "failed"}
    return {sample.id for sample in read_samples(out, manifest)} - done


# ------------------------------------------------------------------------------------------------------- verification


def reopen_changed(
    out: Path, key: str, shards: Iterable[int], *, verify: bool = False, names: Sequence[str] = ()
) -> list[str]:
    """Reopen completed shards whose files differ from the record; returns the clips that are to be run again.

    Args:
        out: The result folder.
        key: The manifest's key.
        shards: The shards to check; those that are not completed are skipped.
        verify: Compare the content with its SHA-256 besides the existence and the size.
        names: Files that the folder of each clip that is done must have.

    Raises:
        OSError: a file cannot be read for another reason than its absence.
    """
    again: list[str] = []
    if store_of(out) is not None and not verify:  # a request for each clip of the job, of a store that loses nothing
        return again
    for shard in sorted(completed(out) & set(shards)):
        with claimed(out, FIRST_SHARD + shard) as free:
            completion = read_completion(out, shard, key) if free else None  # not free: another job has reopened it
            changed = changed_clips(out, completion, verify=verify, names=names) if completion is not None else []
            if completion is not None and changed:
                logger.info("shard %d: the files of %s were lost or changed", shard, ", ".join(changed))
                reopen(out, completion, changed)
                again += changed
    return again


def changed_clips(
    out: Path, completion: Mapping[str, Any], *, verify: bool = False, names: Sequence[str] = ()
) -> list[str]:
    """Return the clips of a completed shard whose files differ from the record, or lack one of `names`.

    A clip that a person corrected is never among them: a kill during the correction may leave an older record.
    """
    if (store := store_of(out)) is not None:
        return store.lost(completion["files"], verify=verify)
    top = f"{out}/"
    done = {row["id"] for row in completion["rows"] if row["status"] != "failed"}
    changed = [
        clip
        for clip, files in completion["files"].items()
        if not all(is_intact(top + path, stamp, verify=verify) for path, stamp in files.items())
        or (clip in done and not all(f"clips/{clip}/{name}" in files for name in names))
    ]
    return [clip for clip in changed if not is_corrected(out, clip)]


def pending_samples(out: Path, request: JobRequest, *, names: Sequence[str] = ()) -> list[Sample]:
    """Return the samples of an open manifest's request that a run would process; the folder is not changed.

    Those are new, not finished or failed, or their files differ from the record (see `reopen_changed`).

    Raises:
        InputError: the folder holds another job's results.
    """
    manifest = read_manifest(out)
    if manifest is None or not (out / LINES).is_file():
        return list(request.chosen)
    manifest = check_manifest(out, manifest, request)
    done: set[str] = set()
    for number in manifest.requested:
        completion = read_completion(out, number, manifest.key)
        if completion is not None:
            again = {*failed_in(completion), *changed_clips(out, completion, names=names)}
            done.update(row["id"] for row in completion["rows"] if row["id"] not in again)
    return [sample for sample in request.chosen if sample.id not in done]


# ----------------------------------------------------------------------------------------------------------- clearing


def clear_folder(out: Path) -> None:
    """Remove the results of an earlier job and nothing else.

    Raises:
        InputError: files that no job wrote are in the place of a job's.
    """
    is_job = (out / IDENTITY).exists() or (out / LINES).exists()
    for name in (name for name in (*_MASKS, "log", WORK) if not is_job and (out / name).exists()):
        raise InputError(f"{out / name} exists, and no job wrote it; give another --out, or remove it yourself")
    for name in _OURS:
        path = out / name
        if name == "clips":
            _clear_clips(path)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _clear_clips(clips: Path) -> None:
    for folder in clips.iterdir() if clips.is_dir() else ():
        if is_clip_folder(folder):
            shutil.rmtree(folder)
    if clips.is_dir() and not any(clips.iterdir()):
        clips.rmdir()


def _unknown_results(out: Path) -> str | None:
    """Return the name of what looks like results in a folder without a manifest, if there is any."""
    named = (name for name in ("run.json", *_MASKS) if os.path.lexists(out / name))
    clips = (f"clips/{path.parent.name}" for path in (out / "clips").glob("*/result.json"))
    return next((name for names in (named, clips) for name in names), None)


def _refuse_foreign(out: Path) -> None:
    """Raise InputError if something else than a file is in the place of a file of the job, or than a folder."""
    for name in (*_OURS, *_INSIDE):
        path, is_folder = out / name, name in _FOLDERS
        if os.path.lexists(path) and not (path.is_dir() if is_folder else path.is_file()):
            kind = "folder" if is_folder else "regular file"
            raise InputError(f"{path} is not a {kind}; remove it, give another --out or start again with --overwrite")


def _refuse_foreign_clips(out: Path, request: JobRequest) -> None:
    """Raise InputError if other files are in the place of a new clip's folder."""
    if (out / "clips").is_dir():
        for sample in request.chosen:
            refuse_other_folder(clip_folder(out, sample.id))


def _make_and_claim(out: Path) -> bool:
    """Make the folder and lock it; False if another job holds it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the output folder {out} ({error.strerror}); give another --out") from error
    try:
        return claim(out, JOB)
    except OSError as error:
        sentence = f"the output folder {out} cannot be written ({error.strerror}); change its permissions"
        raise InputError(f"{sentence} or give another --out") from error
