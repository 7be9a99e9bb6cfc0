"""A job from its plan to its index: what is missing goes to an engine, and everything is told."""

from __future__ import annotations

import logging
import re
import shutil
import time
from contextlib import suppress

from openavs.errors import InputError
from openavs.labeling.executors.base import Executor
from openavs.labeling.index import write_index
from openavs.labeling.job import Job
from openavs.labeling.locks import FIRST_SHARD, JOB, claim, claimed, release
from openavs.labeling.manifest import Manifest
from openavs.labeling.progress import JobProgress

log = logging.getLogger(__name__)

WAIT = 1.0
"""Seconds between two looks at the shards that another job is at work on."""


def parse_part(text: str) -> tuple[int, int]:
    """`3/8`: the third of eight parts, counted from 1. InputError for anything else."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = (int(group) for group in found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise InputError(f"--shard-range is {text!r:.40} and should be I/N with I from 1 to N, such as 1/8")
    return part, parts


def shards_of(plan: Manifest, part: tuple[int, int] | None) -> list[int]:
    """The shards of a part of the job (every N-th), or all of them."""
    first, step = (0, 1) if part is None else (part[0] - 1, part[1])
    return list(range(first, plan.shards, step))


def run_job(job: Job, plan: Manifest, engine: Executor, board: JobProgress) -> None:
    """Has the missing ones of the board's shards done, waits for what another job holds, and writes the index.

    Raises:
        OSError, OpenAVSError: a fault of the job; what is done stays, and the index says what that is.
    """
    board.save("running")
    try:
        while todo := board.missing:
            engine.run(job, plan.specs(job, todo), board)
            board.look()
            if board.stop or not board.missing:
                break
            _wait(job, board)
    finally:
        write_index(job.out, plan.key)
        board.save("stopped")
        if len(board.shards) == plan.shards:
            _clean(job)


def _wait(job: Job, board: JobProgress) -> None:
    """Until one of these shards is committed, or nobody holds it any more."""
    log.info("%d shards are left to another job on %s", len(board.missing), job.out)
    while not board.stopping() and board.missing:
        for number in board.missing:
            with claimed(job.out, FIRST_SHARD + number) as free:
                if free:
                    board.look()  # it was released after its mark was in place, if there is one
                    return
        time.sleep(WAIT)


def _clean(job: Job) -> None:
    """Removes the journals' folder when all is committed and no other job is at work on the folder.

    Of several that end together each lets go for good, so that the last one to come here is alone.
    """
    release(job.out, JOB)
    if claim(job.out, JOB):
        with suppress(FileNotFoundError):
            shutil.rmtree(job.out / "work")
        release(job.out, JOB)
