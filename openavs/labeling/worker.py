"""What runs in a worker, whoever started it."""

from __future__ import annotations

import gc
import logging
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openavs.caching.stagewise import StagedSchedule
from openavs.caching.store import StageCache
from openavs.caching.wrappers import with_cache
from openavs.config.recipe import Recipe, recipe_from_dict
from openavs.labeling.event_log import log_path
from openavs.labeling.executors.base import ClipFinished
from openavs.labeling.job import Job, ShardSpec
from openavs.labeling.shard import run_shard
from openavs.models.memory import release_memory
from openavs.pipeline.lockfile import build_pinned_pipeline, load_lock, pin_recipe
from openavs.pipeline.memory_estimate import should_offload
from openavs.pipeline.pipeline import Pipeline
from openavs.utils.logs import SafeFormatter

if TYPE_CHECKING:
    from openavs.training.inference import StudentPipeline


def environment(job: Job, device: str | None = None) -> dict[str, str]:
    """What has to be set before a worker starts: its threads, its heaps, and the GPU that it sees, if any.

    glibc would give each thread that comes and goes with a clip a heap of its own, and keep the gaps in all of them.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    found = dict.fromkeys(names, str(job.threads)) | {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}
    return found if device is None else {**found, "CUDA_VISIBLE_DEVICES": device}


GC_INTERVAL = 32
"""After so many clips of a shard memory that nobody uses is given back."""


class ShardWorker:
    """The models of a job, loaded once or in turns (`caching/stagewise.py`), and `run_shard` with them.

    Raises:
        OpenAVSError: the recipe or one of its models cannot be used.
    """

    chain: Pipeline | StudentPipeline
    ahead: StagedSchedule | None
    cache: StageCache | None

    def __init__(self, job: Job) -> None:
        recipe = recipe_from_dict(dict(job.recipe), base=job.base)
        self.ahead = self.cache = None
        if recipe.student is None and _in_turns(job, recipe):
            self.ahead = StagedSchedule(
                recipe, job.lock, job.cache or job.out / "work" / "stages", job.window, job.threads
            )
            self.chain, self.cache = self.ahead.pipe, self.ahead.cache
        else:
            self.chain = _chain(recipe, job.lock)
            if "torch" in sys.modules:
                import torch

                torch.set_num_threads(job.threads)
            if job.cache is not None and isinstance(self.chain, Pipeline):  # a student has no stages
                self.cache = with_cache(self.chain, recipe, job.cache)
        self._told: Counter[str] = Counter()
        self._clips = 0
        gc.collect()
        gc.freeze()  # the collector skips the models: `release_memory` takes 2 ms instead of 0.4 s

    @property
    def models(self) -> dict[str, Any]:
        """What the model references resolved to."""
        return self.chain.models

    def run(self, spec: ShardSpec, *, tell: Callable[[ClipFinished], None], stop: Callable[[], bool]) -> Any:
        """`run_shard`; what is told of clips says how the stage cache did, too."""

        def told(done: ClipFinished) -> None:
            tell(replace(done, cached=self._news()))
            self._clips += 1
            if self._clips % GC_INTERVAL == 0:
                release_memory()

        try:
            return run_shard(spec, self.chain, ahead=self.ahead, tell=told, stop=stop)
        finally:
            release_memory()

    def _news(self) -> dict[str, int]:
        """Hits and misses of the cache since it was last told."""
        if self.cache is None:
            return {}
        counts = Counter({f"{stage} {what}": count for (stage, what), count in dict(self.cache.counts).items()})
        news = counts - self._told
        self._told = counts
        return dict(sorted(news.items()))


def _in_turns(job: Job, recipe: Recipe) -> bool:
    """Whether the models take turns; they are measured at the commits that will be loaded."""
    return should_offload(pin_recipe(recipe, load_lock(job.lock)) if job.lock else recipe, job.schedule, job.share)


def _chain(recipe: Recipe, lock: Path | None) -> Pipeline | StudentPipeline:
    """What runs the recipe: a pipeline, or a student."""
    if recipe.student is not None:
        from openavs.training.inference import StudentPipeline

        return StudentPipeline.from_recipe(recipe)
    return build_pinned_pipeline(recipe, load_lock(lock)) if lock else Pipeline.from_recipe(recipe)


def log_to_file(job: Job, level: int = logging.WARNING) -> None:
    """Sends this process's log to a file of its own in `OUT/log`, which is not hashed.

    What cannot be written there, such as on a full disk, is lost; a fault of the disk is reported with the results.
    """
    logging.raiseExceptions = False
    with suppress(OSError):  # a full or read-only disk is told where results are written
        handler = logging.FileHandler(log_path(job.out, "worker", ".log"))
        handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(handlers=[handler], level=level)
