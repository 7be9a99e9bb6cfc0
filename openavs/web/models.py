"""The models of the page: loaded when first asked for, kept, and used by one run at a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openavs.api import VideoPipeline
from openavs.caching.store import StageCache
from openavs.caching.wrappers import with_cache
from openavs.config.recipe import override_recipe
from openavs.errors import InputError
from openavs.pipeline.memory_estimate import should_offload
from openavs.pipeline.offload import lazy_stages
from openavs.registry import BackendCache
from openavs.structures.types import Caption
from openavs.web.menu import RecipeOption

REMEMBERED = ("captioner", "translator", "detector")
CACHE_LIMIT = 200_000_000
ALWAYS = "tiny"
"""Kept beside the others: the example needs it, and it takes some 20 MB."""

Heard = Sequence[tuple[Caption, ...] | None]


class WatchedPipeline(VideoPipeline):
    """Tells what was heard as soon as it is known, before anything is looked at."""

    on_heard: Callable[[Heard], None]
    """Set anew for every run."""

    def caption(self, *args: Any, **kwargs: Any) -> Any:
        """As the pipeline."""
        heard = super().caption(*args, **kwargs)
        self.on_heard(heard)
        return heard


class ModelCache:
    """One pipeline at a time is held beside the `tiny` one; stages that two recipes share stay when one takes over.

    What the stages answered is remembered in `cache_folder`, so a second run with another threshold neither hears nor
    looks anew.
    """

    def __init__(self, offers: Mapping[str, RecipeOption], cache_folder: Path) -> None:
        self.offers = dict(offers)
        self._cache_folder = cache_folder
        self._small: BackendCache = {}
        self._large: BackendCache = {}
        self._loaded: dict[bool, str] = {}
        self._lock = threading.Lock()
        StageCache(cache_folder).set_limit(CACHE_LIMIT)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The recipes whose models are in memory."""
        return tuple(self._loaded.values())

    @contextmanager
    def using(
        self, name: str, vocabulary: Sequence[str] = (), threshold: float | None = None
    ) -> Iterator[tuple[WatchedPipeline, StageCache]]:
        """The pipeline of a recipe, changed as asked, and the cache that counts what it remembers of this run.

        Raises:
            InputError: the page has no such recipe.
            ModelError: its models cannot be loaded.
        """
        with self._lock:
            yield self._build(self.offer(name), vocabulary, threshold)

    def offer(self, name: str) -> RecipeOption:
        """The recipe of that name; InputError if the page has none."""
        if name not in self.offers:
            raise InputError(f"this page has no recipe {name!r:.60}; it has {', '.join(self.offers)}")
        return self.offers[name]

    def _build(
        self, offer: RecipeOption, vocabulary: Sequence[str], threshold: float | None
    ) -> tuple[WatchedPipeline, StageCache]:
        changes = [f"vocabulary={json.dumps(list(vocabulary))}"] if vocabulary else []
        if threshold is not None:
            changes.append(f"filtering.box_threshold={threshold}")
        recipe = override_recipe(offer.recipe, changes)
        is_small = offer.name == ALWAYS
        self._loaded.pop(is_small, None)  # a build that fails half-way leaves no recipe loaded
        held = self._small if is_small else self._large
        if not held and should_offload(recipe):
            held.update(lazy_stages(recipe)[1])
        pipe = WatchedPipeline.from_recipe(recipe, held)
        self._loaded[is_small] = offer.name
        return pipe, with_cache(pipe, recipe, self._cache_folder, REMEMBERED)
