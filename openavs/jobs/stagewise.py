"""Stage by stage over a window of clips: for models that do not fit into memory together, or answer best in batches.

All clips of a window are heard, then one call asks about all of them, then they are looked at one by one. What is in
between lies on the disk, in the stage cache, as if the clips had been gone through one by one; so the results are the
same, and a window that was interrupted is gone on with where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from openavs.caching import RememberingTranslator, with_cache
from openavs.halving import is_out_of_memory
from openavs.locking import load_lock, pinned, pinned_pipeline
from openavs.notes import Notes
from openavs.pipeline import Pipeline
from openavs.recipes import Recipe
from openavs.translators.base import Request
from openavs.turns import deferred_stages
from openavs.types import Clip

log = logging.getLogger(__name__)

WINDOW = 256
"""Clips: as many as a shard has, and enough that loading models is a small part."""


class Stagewise:
    """A pipeline whose models take turns, and what it does ahead for a window of clips.

    Args:
        recipe: the job's.
        lock: a file of pinned model commits.
        cache: the folder of the stage cache, which holds what passes between the stages.
        window: clips in a window.
        threads: of a CPU; results depend on them.

    Raises:
        OpenAVSError: the recipe or one of its models cannot be used; each is loaded once to find out.
    """

    def __init__(self, recipe: Recipe, lock: Path | None, cache: Path, window: int = WINDOW, threads: int = 1) -> None:
        import torch

        torch.set_num_threads(threads)
        self.window = window
        pins = load_lock(lock) if lock else None
        self.turns, held = deferred_stages(pinned(recipe, pins) if pins else recipe)
        self.pipe = pinned_pipeline(recipe, pins, held) if pins else Pipeline.from_recipe(recipe, held)
        for stage in ("tracker", "verifier", "segmenter", "detector"):  # those that are needed first are loaded last
            if stage in held:
                self.turns.models(stage)
        self.cache = with_cache(self.pipe, recipe, cache, stages=("translator", "captioner"))

    def hear(self, clip: Clip) -> Request:
        """Listens to a clip, which is remembered; what is to be asked about it."""
        heard = self.pipe.listen(clip, _Unsaid())
        return Request(tuple(captions or () for captions in heard), self.pipe.settings.vocabulary)

    def ask(self, requests: Sequence[Request]) -> None:
        """Asks about all clips of a window in one call of the translator; the answers are remembered one by one."""
        asked = [request for request in requests if any(request.frames)]
        translator = self.pipe.translator
        if not asked or not isinstance(translator, RememberingTranslator):
            return
        try:
            answers = translator.ahead(asked)
        except Exception as problem:
            if not is_out_of_memory(problem):
                raise
            log.warning("the questions of %d clips do not fit into memory at once; they are asked singly", len(asked))
            return
        for answer in answers:
            for phrase in (phrase for phrases in answer.frames for phrase in phrases):
                self.pipe.label(phrase)  # may take the captioner's text encoder; the pipeline remembers it


class _Unsaid(Notes):
    """What is worth telling is told when the clip has its turn."""

    def warn(self, sentence: str) -> None:
        """Says nothing."""
