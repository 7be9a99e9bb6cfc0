"""Runs a job: missing shards go to an executor, progress is saved, the index is written; or saves finished results."""

from __future__ import annotations

import logging
import re
import shutil
import time
from contextlib import suppress

from openavs.errors import InputError
from openavs.jobs.checkpoint import WORK
from openavs.jobs.index import write_index
from openavs.jobs.job import Executor, Job
from openavs.jobs.locks import FIRST_SHARD, JOB, claim, claimed, release
from openavs.jobs.manifest import Manifest
from openavs.jobs.progress import JobProgress

logger = logging.getLogger(__name__)

WAIT = 1.0
"""Seconds between two checks of the shards that another job holds."""
STORE_WAIT = 5.0
"""The same on an object store."""


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
    logger.info("another job holds %d shards of %s", len(progress.missing), job.place)
    while not progress.stopping() and progress.missing:
        for number in progress.missing:
            with claimed(job.out, FIRST_SHARD + number) as free:
                if free:
                    progress.rescan()  # a shard is released after its completion file is in place
                    return
        time.sleep(WAIT if job.store is None else STORE_WAIT)


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
