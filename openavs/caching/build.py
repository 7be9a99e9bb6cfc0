"""Builds the pipeline of a recipe: pinned by a lock file, with the stage cache, and offloaded where memory is short.

Models that do not fit into memory together, or are faster in batches, run stage by stage: all clips of a window are
captioned, then one call translates all captions, then the clips are localized one by one. Intermediate outputs are in
the stage cache, as if the clips had been processed one by one; the results are the same, and an interrupted window is
resumed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from openavs.caching.store import CachePlace, StageCache, cache_place
from openavs.caching.wrappers import CachedTranslator, with_cache
from openavs.config.recipe import STAGE_GROUPS, Recipe, stage_of
from openavs.errors import InputError
from openavs.models.device import is_out_of_memory, set_threads
from openavs.pipeline.context import Progress, RunContext
from openavs.pipeline.lockfile import load_lock, pin_recipe
from openavs.pipeline.memory_estimate import should_offload
from openavs.pipeline.offload import lazy_stages
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import BackendCache
from openavs.stages.translators.base import Request
from openavs.structures.types import Clip, ClipResult

logger = logging.getLogger(__name__)

WINDOW = 256
"""Clips per window: the size of a shard, and enough to make the loading of models a small part of the time."""

AnyPipeline = TypeVar("AnyPipeline", bound=Pipeline)


def build_pipeline(
    recipe: Recipe,
    *,
    lock: Path | None = None,
    schedule: str = "auto",
    cache: CachePlace | None = None,
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
        cache: The folder or address of the stage cache; None: no cache.
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
        staged = StagedSchedule(recipe, lock, cache or scratch or cache_place(), window, threads)
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


class StagedSchedule:
    """A pipeline that offloads its models, and captions and translates a window of clips in advance.

    Args:
        recipe: the recipe.
        lock: a file of pinned model commits.
        cache: the folder or address of the stage cache, which stores the intermediate outputs.
        window: clips in a window.
        threads: number of CPU threads, on which results depend. None: torch's default.

    Raises:
        OpenAVSError: the recipe or one of its models is invalid; each model is loaded once to check it.
    """

    def __init__(
        self, recipe: Recipe, lock: Path | None, cache: CachePlace, window: int = WINDOW, threads: int | None = 1
    ) -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self.window = window
        pinned = pin_recipe(recipe, load_lock(lock)) if lock else recipe
        self.offload_manager, backends = lazy_stages(pinned)
        self.pipe = Pipeline.from_recipe(pinned, backends)
        self.pipe.recipe = recipe.to_dict()  # results record the recipe as it is, and the commits beside it
        for key in reversed(backends):  # the first to run is loaded last
            if stage_of(key) in STAGE_GROUPS[-1]:
                self.offload_manager.models(key)
        self.cache = with_cache(self.pipe, recipe, cache, stages=("translator", "captioner", "reasoner"))

    def __call__(self, clip: Clip, progress: Progress | None = None) -> ClipResult:
        """Segment one clip; after `run_captioner` and `run_translator` only the last stage group is loaded for it."""
        return self.pipe(clip, progress)

    @property
    def models(self) -> dict[str, Any]:
        """The resolved model of every reference."""
        return self.pipe.models

    def run_captioner(self, clip: Clip) -> Request:
        """Caption a clip (cached), and return its request to the translator."""
        return self.pipe.request(clip, self.pipe.caption(clip, _SilentContext()))

    def run_translator(self, requests: Sequence[Request]) -> None:
        """Translate the requests of a window in one call; the translations are cached one by one."""
        audible = [request for request in requests if any(request.frames)]
        translator = self.pipe.translator
        if not audible:
            return
        try:
            if isinstance(translator, CachedTranslator):
                translations = translator.prefetch(audible)
            elif self.pipe.settings.vocabulary:
                translations = translator.translate(audible)
            else:
                return
        except Exception as error:
            if isinstance(error, InputError):  # of one clip, which fails when it is segmented
                logger.info("%d clips are translated one by one: %s", len(audible), error)
                return
            if not is_out_of_memory(error):
                raise
            logger.warning("%d clips do not fit into memory together; they are translated one by one", len(audible))
            return
        for translation in translations:
            for phrase in (phrase for phrases in translation.frames for phrase in phrases):
                self.pipe.label(phrase)  # may need the captioner's text encoder; the label is cached


class _SilentContext(RunContext):
    """Suppresses warnings; they are reported when the clip is segmented."""

    def warn(self, sentence: str) -> None:
        """Ignore the warning."""
