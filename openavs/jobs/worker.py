"""A worker of a job: the pipeline, loaded once, and shards that are run with it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from openavs.jobs.event_log import log_path
from openavs.jobs.job import CacheCounter, ClipFinished, Job, ShardSpec, build, models_of
from openavs.jobs.shard import run_shard
from openavs.models.device import release_memory
from openavs.utils.text import SafeFormatter

GC_INTERVAL = 32
"""Clips after which unused memory is returned to the system."""


class ShardWorker:
    """The pipeline of a job in a process of its own, and `run_shard` with it.

    Raises:
        OpenAVSError: the recipe or one of its models cannot be used.
    """

    def __init__(self, job: Job) -> None:
        self.pipeline, self.cache = build(job)
        self.models = models_of(self.pipeline)
        self._cached = CacheCounter(self.cache)
        self._clips = 0
        gc.collect()
        gc.freeze()  # the collector skips the models: `release_memory` takes 2 ms instead of 0.4 s

    def run(self, spec: ShardSpec, *, on_clip: Callable[[ClipFinished], None], stop: Callable[[], bool]) -> Any:
        """Call `run_shard`; events of clips include hits and misses of the stage cache."""

        def finished(done: ClipFinished) -> None:
            on_clip(replace(done, cached=self._cached()))
            self._clips += 1
            if self._clips % GC_INTERVAL == 0:
                release_memory()

        try:
            return run_shard(spec, self.pipeline, on_clip=finished, stop=stop)
        finally:
            release_memory()


def log_to_file(job: Job, level: int = logging.WARNING) -> None:
    """Send this process's log to a file of its own in `OUT/log`, which is not hashed.

    Records that cannot be written, such as on a full disk, are lost; the fault is reported with the results.
    """
    logging.raiseExceptions = False
    with suppress(OSError):
        handler = logging.FileHandler(log_path(job.out, "worker", ".log"))
        handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(handlers=[handler], level=level)


# ------------------------------------------------------------------------------------------------ threads and devices


def environment(job: Job, device: str | None = None) -> dict[str, str]:
    """Return the environment variables of a worker: its threads, its heaps, and the GPU that it may use, if any.

    glibc would give each thread that comes and goes with a clip a heap of its own, and keep the gaps in all of them.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    found = dict.fromkeys(names, str(job.threads)) | {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}
    return found if device is None else {**found, "CUDA_VISIBLE_DEVICES": device}
