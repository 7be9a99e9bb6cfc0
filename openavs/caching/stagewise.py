"""Stage by stage over a window of clips: for models that do not fit into memory together, or answer best in batches.

All clips of a window are heard, then one call asks about all of them, then they are looked at one by one. What is in
between lies on the disk, in the stage cache, as if the clips had been gone through one by one; so the results are the
same, and a window that was interrupted is gone on with where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from openavs.caching.store import cache_folder
from openavs.caching.wrappers import CachedTranslator, with_cache
from openavs.config.recipe import Recipe
from openavs.errors import InputError, OpenAVSError
from openavs.models.oom import is_out_of_memory
from openavs.pipeline.context import Progress, RunContext
from openavs.pipeline.lockfile import build_pinned_pipeline, load_lock, pin_recipe
from openavs.pipeline.memory_estimate import should_offload
from openavs.pipeline.offload import lazy_stages
from openavs.pipeline.pipeline import Pipeline
from openavs.stages.translators.base import Request
from openavs.structures.types import Clip, ClipResult

log = logging.getLogger(__name__)

WINDOW = 256
"""Clips: as many as a shard has, and enough that loading models is a small part."""


class StagedSchedule:
    """A pipeline whose models take turns, and what it does ahead for a window of clips.

    Args:
        recipe: the job's.
        lock: a file of pinned model commits.
        cache: the folder of the stage cache, which holds what passes between the stages.
        window: clips in a window.
        threads: of a CPU; results depend on them. None: torch's own number.

    Raises:
        OpenAVSError: the recipe or one of its models cannot be used; each is loaded once to find out.
    """

    def __init__(
        self, recipe: Recipe, lock: Path | None, cache: Path, window: int = WINDOW, threads: int | None = 1
    ) -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self.window = window
        pins = load_lock(lock) if lock else None
        self.turns, held = lazy_stages(pin_recipe(recipe, pins) if pins else recipe)
        self.pipe = build_pinned_pipeline(recipe, pins, held) if pins else Pipeline.from_recipe(recipe, held)
        for stage in ("tracker", "verifier", "segmenter", "detector"):  # those that are needed first are loaded last
            if stage in held:
                self.turns.models(stage)
        self.cache = with_cache(self.pipe, recipe, cache, stages=("translator", "captioner"))

    def __call__(self, clip: Clip, progress: Progress | None = None) -> ClipResult:
        """Segments one clip; with `prepare` before, only the models of the last group are loaded for it."""
        return self.pipe(clip, progress)

    @property
    def models(self) -> dict[str, Any]:
        """What every model reference of the stages resolved to."""
        return self.pipe.models

    def prepare(self, clips: Iterable[Clip]) -> None:
        """Captions the clips of a window and translates all captions in one call; the answers are cached.

        A clip that fails is left out: the same error is raised again when it is segmented.
        """
        requests = []
        for clip in clips:
            with suppress(OpenAVSError):
                requests.append(self.run_captioner(clip))
        with suppress(OpenAVSError):
            self.run_translator(requests)

    def run_captioner(self, clip: Clip) -> Request:
        """Listens to a clip, which is remembered; what is to be asked about it."""
        return self.pipe.request(self.pipe.caption(clip, _Unsaid()))

    def run_translator(self, requests: Sequence[Request]) -> None:
        """Asks about all clips of a window in one call of the translator; the answers are remembered one by one."""
        asked = [request for request in requests if any(request.frames)]
        translator = self.pipe.translator
        if not asked:
            return
        try:
            if isinstance(translator, CachedTranslator):
                answers = translator.ahead(asked)
            elif self.pipe.settings.vocabulary:
                answers = translator.translate(asked)
            else:
                return
        except Exception as problem:
            if isinstance(problem, InputError):  # of one of the clips, which fails when it is segmented
                log.info("the questions of %d clips are asked singly: %s", len(asked), problem)
                return
            if not is_out_of_memory(problem):
                raise
            log.warning("the questions of %d clips do not fit into memory at once; they are asked singly", len(asked))
            return
        for answer in answers:
            for phrase in (phrase for phrases in answer.frames for phrase in phrases):
                self.pipe.label(phrase)  # may take the captioner's text encoder; the pipeline remembers it


def build_staged(recipe: Recipe, lock: Path | None = None) -> StagedSchedule | None:
    """Return the recipe with models that take turns where they do not fit into memory together, else None.

    Raises:
        InputError: not even the largest group of stages fits; nothing is loaded.
    """
    if not should_offload(pin_recipe(recipe, load_lock(lock)) if lock else recipe):
        return None
    return StagedSchedule(recipe, lock, cache_folder(), threads=None)


class _Unsaid(RunContext):
    """What is worth telling is told when the clip has its turn."""

    def warn(self, sentence: str) -> None:
        """Says nothing."""
