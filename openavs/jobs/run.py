"""Runs a job: missing shards go to an executor, progress is saved, the index is written; or saves finished results."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.jobs.checkpoint import WORK, read_completion, reopen
from openavs.jobs.executors.base import Executor
from openavs.jobs.executors.local import InlineExecutor
from openavs.jobs.index import write_index
from openavs.jobs.job import Job
from openavs.jobs.locks import FIRST_SHARD, JOB, claim, claimed, release
from openavs.jobs.manifest import JobRequest, Manifest
from openavs.jobs.output_dir import open_folder, reopen_changed
from openavs.jobs.progress import JobProgress
from openavs.jobs.sample import Sample, file_size
from openavs.jobs.worker import default_threads
from openavs.results.serialization import clip_folder
from openavs.structures.types import Clip, ClipResult

logger = logging.getLogger(__name__)

WAIT = 1.0
"""Seconds between two checks of the shards that another job holds."""


def parse_shard_range(text: str) -> tuple[int, int]:
    """Parse `3/8`, the third of eight parts, counted from 1.

    Raises:
        InputError: the text is anything else.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = (int(group) for group in found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise InputError(f"--shard-range is {text!r:.40} and should be I/N with I from 1 to N, such as 1/8")
    return part, parts


def shards_of(manifest: Manifest, part: tuple[int, int] | None) -> list[int]:
    """Return the shards of a part of the job (every N-th), or all of them."""
    first, step = (0, 1) if part is None else (part[0] - 1, part[1])
    return list(range(first, manifest.shards, step))


def run_job(job: Job, manifest: Manifest, executor: Executor, progress: JobProgress, *, parquet: bool = False) -> None:
    """Run the missing shards of the progress, wait for those that another job holds, and write the index.

    Raises:
        OSError, OpenAVSError: a fault of the job; finished clips are kept and indexed.
    """
    progress.save("running")
    ended = "stopped"
    try:
        while todo := progress.missing:
            executor.run(job, manifest.specs(job, todo), progress)
            progress.rescan()
            if progress.stop or not progress.missing:
                break
            _wait(job, progress)
    except KeyboardInterrupt:
        ended = "interrupted"
        raise
    finally:
        write_index(job.out, manifest, parquet=parquet)
        progress.save(ended)
        _finish(job, len(progress.shards) == manifest.shards)


def _wait(job: Job, progress: JobProgress) -> None:
    """Wait until one of the missing shards is completed or released."""
    logger.info("another job holds %d shards of %s", len(progress.missing), job.out)
    while not progress.stopping() and progress.missing:
        for number in progress.missing:
            with claimed(job.out, FIRST_SHARD + number) as free:
                if free:
                    progress.rescan()  # a shard is released after its completion file is in place
                    return
        time.sleep(WAIT)


def _finish(job: Job, is_complete: bool) -> None:
    """Release the folder; when all shards are completed and no other job uses it, remove what only a run needs.

    Of several jobs that end together each releases the folder first, so that the last one has it alone.
    """
    release(job.out, JOB)
    if is_complete and claim(job.out, JOB):
        for path in (job.out / WORK).iterdir() if (job.out / WORK).is_dir() else ():
            if path.name == "stages" or path.name.partition(".")[0].isdigit():  # the cache of a job, copies, journals
                with suppress(FileNotFoundError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        release(job.out, JOB)


REPORT_SINK = "openavs.jobs.job:ReportSink"


def save_result(
    out: Path,
    result: ClipResult,
    open_clip: Callable[[], Any] = lambda: None,
    *,
    files: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write one result into a result folder that may hold other clips of the same recipe; returns `out/clips/<id>`.

    Args:
        out: The result folder.
        result: The result; its clip is a safe id.
        open_clip: Opens the clip, which `files` need.
        files: Those of `overlay.mp4` and `report.html` that are written.
        overwrite: Replace an earlier result of the clip.

    Raises:
        InputError: `out` holds the results of another recipe, or one of this clip and `overwrite` is false.
    """
    out = out.absolute()
    sample = Sample(result.clip, result.source or "", bytes=file_size(result.source or ""))
    classes = tuple(result.recipe.get("vocabulary") or ())
    request = JobRequest(
        "segment", [sample], result.recipe, classes, command="segment", default_threads=default_threads()
    )
    manifest = open_folder(out, request)
    number = manifest.requested[0]
    reopen_changed(out, manifest.key, [number])
    completion = read_completion(out, number, manifest.key)
    if completion is not None:
        if not overwrite:
            raise InputError(
                f"{out} holds a result of {result.clip!r} already; say overwrite=True or give another folder"
            )
        reopen(out, completion, [result.clip])
    job = Job(
        out,
        manifest.key,
        Path.cwd(),
        result.recipe,
        sink=REPORT_SINK,
        options={"files": list(files)},
        classes=classes,
        threads=manifest.threads,
    )
    executor = InlineExecutor(lambda: (_Finished(result), None), open_clip=lambda sample: open_clip())
    run_job(job, manifest, executor, JobProgress(job, manifest, [number], {}))
    completion = read_completion(out, number, manifest.key)
    row = {} if completion is None else completion["rows"][0]
    if row.get("status") != "ok":
        raise InputError(str(row.get("detail", f"{result.clip} was not written")))
    return clip_folder(out, result.clip)


class _Finished:
    """A pipeline that returns a result that exists already."""

    def __init__(self, result: ClipResult) -> None:
        self.result = result
        self.models = result.models

    def __call__(self, clip: Clip) -> ClipResult:
        return self.result
