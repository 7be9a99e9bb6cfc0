"""What runs in a worker, whoever started it: the pipeline of a job, built once."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

from openavs.caching import with_cache
from openavs.jobs.job import Job
from openavs.jobs.sidelog import log_path
from openavs.locking import load_lock, pinned_pipeline
from openavs.pipeline import Pipeline
from openavs.recipes import recipe_from_dict


def environment(job: Job, device: str | None = None) -> dict[str, str]:
    """What has to be set before a worker imports numpy and torch: its threads, and the GPU that it sees, if any."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    found = dict.fromkeys(names, str(job.threads)) | {"TOKENIZERS_PARALLELISM": "false"}
    return found if device is None else {**found, "CUDA_VISIBLE_DEVICES": device}


def build(job: Job) -> Pipeline:
    """Loads the models of a job.

    Raises:
        OpenAVSError: the recipe or one of its models cannot be used.
    """
    recipe = recipe_from_dict(dict(job.recipe), base=job.base)
    chain = pinned_pipeline(recipe, load_lock(job.lock)) if job.lock else Pipeline.from_recipe(recipe)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(job.threads)
    if job.cache is not None:
        with_cache(chain, recipe, job.cache)
    return chain


def log_to_file(job: Job, level: int = logging.WARNING) -> None:
    """Sends this process's log to a file of its own in `OUT/log`, which is not hashed."""
    with suppress(OSError):  # a full or read-only disk is told where results are written
        logging.basicConfig(
            filename=log_path(job.out, "worker", ".log"),
            level=level,
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        )
