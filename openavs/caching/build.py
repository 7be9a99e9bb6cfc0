"""Builds the pipeline of a recipe: pinned by a lock file, with the stage cache, and offloaded where memory is short."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from openavs.caching.stagewise import WINDOW, StagedSchedule
from openavs.caching.store import StageCache, cache_folder
from openavs.caching.wrappers import with_cache
from openavs.config.recipe import Recipe
from openavs.pipeline.lockfile import load_lock, pin_recipe
from openavs.pipeline.memory_estimate import should_offload
from openavs.pipeline.offload import lazy_stages
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import BackendCache

AnyPipeline = TypeVar("AnyPipeline", bound=Pipeline)


def build_pipeline(
    recipe: Recipe,
    *,
    lock: Path | None = None,
    schedule: str = "auto",
    cache: Path | None = None,
    scratch: Path | None = None,
    window: int = WINDOW,
    threads: int | None = None,
    share: float = 1.0,
    held: BackendCache | None = None,
) -> tuple[Pipeline | StagedSchedule, StageCache | None]:
    """Build the pipeline of a recipe and load its models; returns it with its stage cache.

    Args:
        recipe: The recipe; results record it as it is, and the commits of its models beside it.
        lock: A file of pinned model commits.
        schedule: `per-clip`, `per-stage` or `auto`, by available memory.
        cache: The folder of the stage cache; None: no cache.
        scratch: The folder for answers between stages where there is no cache; None: that of the cache.
        window: Clips of a window of the schedule `per-stage`.
        threads: CPU threads of torch; None: as they are.
        share: The part of the device's memory that may be used.
        held: Backends that are loaded already, see `build_backends`.

    Raises:
        InputError: a stage cannot be built, or not even the largest group of models fits into memory.
        ModelError: a model cannot be found or loaded.
    """
    pinned = pin_recipe(recipe, load_lock(lock)) if lock else recipe
    if not held and should_offload(pinned, schedule, share):  # models that are held have shown that they fit
        staged = StagedSchedule(recipe, lock, cache or scratch or cache_folder(), window, threads)
        return staged, staged.cache
    pipeline = Pipeline.from_recipe(pinned, held)
    pipeline.recipe = recipe.to_dict()
    set_threads(threads)  # before the cache: its fingerprints depend on them
    return pipeline, None if cache is None else with_cache(pipeline, recipe, cache)


def load_pipeline(cls: type[AnyPipeline], recipe: Recipe, held: BackendCache | None = None) -> AnyPipeline:
    """Build a pipeline that runs one clip at a time and load its models.

    Models that do not fit into memory together are loaded one group at a time, again for each clip.

    Args:
        cls: The class of the pipeline.
        recipe: The recipe.
        held: Backends that are loaded already, see `build_backends`.

    Raises:
        InputError, ModelError: See `build_pipeline`.
    """
    held = {} if held is None else held
    if not held and should_offload(recipe):
        held.update(lazy_stages(recipe)[1])
    return cls.from_recipe(recipe, held)


def set_threads(threads: int | None) -> None:
    """Set the CPU threads of torch, if it is imported."""
    if threads is not None and "torch" in sys.modules:
        import torch

        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set the CPU threads of torch, if it is imported, inside the block."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    before = torch.get_num_threads()
    set_threads(threads)
    try:
        yield
    finally:
        set_threads(before)
