"""A worker of a job: the pipeline, loaded once, and shards that are run with it."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from openavs.caching.store import StageCache
from openavs.config.recipe import recipe_from_dict
from openavs.jobs.event_log import log_path
from openavs.jobs.job import ClipFinished, Job, ShardSpec, import_name
from openavs.jobs.shard import run_shard
from openavs.models.device import available_memory, has_gpu, release_memory
from openavs.utils.text import SafeFormatter

GC_INTERVAL = 32
"""Clips after which unused memory is returned to the system."""
WORKER_MEMORY = 4 << 30
"""Bytes of free memory that a worker on a CPU is assumed to need: an audio model, a detector and a segmenter."""


def build(job: Job) -> tuple[Any, StageCache | None]:
    """Build the pipeline of a job; returns it with its stage cache.

    Raises:
        OpenAVSError: the recipe or one of its models cannot be used.
    """
    recipe = recipe_from_dict(dict(job.recipe), base=job.base)
    built: tuple[Any, StageCache | None] = import_name(job.builder)(
        recipe,
        lock=job.lock,
        schedule=job.schedule,
        cache=job.cache,
        scratch=job.out / "work" / "stages",
        window=job.window,
        threads=job.threads,
        share=job.share,
    )
    return built


def models_of(predict: Any) -> dict[str, Any]:
    """Return what the model references of a pipeline, or of one of its methods, resolved to."""
    owner = predict if hasattr(predict, "models") else getattr(predict, "__self__", None)
    return dict(getattr(owner, "models", {}))


class CacheCounter:
    """Hits and misses of a stage cache since the last call."""

    def __init__(self, cache: StageCache | None) -> None:
        self.cache = cache
        self._known: Counter[str] = Counter()

    def __call__(self) -> dict[str, int]:
        """Return the counts since the last call, such as `{"captioner hits": 1}`."""
        if self.cache is None:
            return {}
        counts = Counter({f"{stage} {what}": count for (stage, what), count in dict(self.cache.counts).items()})
        new = counts - self._known
        self._known = counts
        return dict(sorted(new.items()))


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


def default_threads(workers: int = 1) -> int:
    """Return the CPU threads of each of some workers that share this machine; of one worker those of torch."""
    if "torch" in sys.modules:
        import torch

        cores = torch.get_num_threads()
    else:
        named = os.environ.get("OMP_NUM_THREADS", "")
        cores = int(named) if named.isdigit() and int(named) else (os.cpu_count() or 1)
    return max(1, cores // workers)


def visible_gpus(device: str) -> tuple[str, ...]:
    """Return the GPUs to spread workers over, as `CUDA_VISIBLE_DEVICES` names them; none if the recipe names one.

    torch is imported only on machines that may have a GPU.
    """
    if device not in ("auto", "cuda"):
        return ()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    if not has_gpu():
        return ()
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def default_workers(devices: tuple[str, ...]) -> int:
    """Return one worker for each GPU; on a CPU one for two cores, as far as the free memory allows."""
    memory = available_memory() or WORKER_MEMORY
    return len(devices) or max(1, min((os.cpu_count() or 1) // 2, memory // WORKER_MEMORY))


def memory_share(workers: int, devices: tuple[str, ...]) -> float:
    """Return the part of its device's memory that each of some workers can use."""
    return 1 / -(-workers // max(len(devices), 1))
