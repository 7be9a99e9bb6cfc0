"""Offloading: loading the models of one group of stages unloads those of the other groups first.

There are three groups: captioner, translator, and the stages that work on the same frames. A pipeline of `Deferred`
stages gives the same results; a change of groups costs a load, so many clips go through one group before the next
(`caching/stagewise.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from openavs.config.recipe import Recipe
from openavs.models.device import empty_cuda_cache
from openavs.models.memory import release_memory
from openavs.registry import BackendCache, check_backends, instantiate

STAGE_GROUPS = (("captioner",), ("translator",), ("detector", "segmenter", "verifier", "tracker"))
"""The stages whose models are in memory together."""


class OffloadManager:
    """The stages of a recipe as they were checked, and those of them that are loaded now.

    `loads` counts how often each was loaded, `most` is the greatest number that was loaded at a time.
    """

    def __init__(self, checked: Mapping[str, tuple[type, dict[str, Any]]]) -> None:
        self._checked = checked
        self._made: dict[str, Any] = {}
        self._models: dict[str, dict[str, Any]] = {}
        self.loads: Counter[str] = Counter()
        self.most = 0

    def backend(self, stage: str) -> Any:
        """The stage's backend; it is loaded if it is not there, when those of other turns have gone."""
        if stage not in self._made:
            [turn] = [turn for turn in STAGE_GROUPS if stage in turn]
            self.release(but=turn)
            self._made[stage] = instantiate(*self._checked[stage])
            self.loads[stage] += 1
            self.most = max(self.most, len(self._made))
        return self._made[stage]

    def models(self, stage: str) -> dict[str, Any]:
        """What a stage's model references resolved to: known from its first load on."""
        if stage not in self._models:
            self._models[stage] = dict(getattr(self.backend(stage), "models", {}))
        return self._models[stage]

    def release(self, but: tuple[str, ...] = ()) -> None:
        """Unloads all stages except some and returns their memory to the system and the device."""
        gone = [stage for stage in self._made if stage not in but]
        for stage in gone:
            del self._made[stage]
        if gone:
            release_memory()
            empty_cuda_cache()


class LazyBackend:
    """A stage that is loaded when one of its methods is called."""

    def __init__(self, turns: OffloadManager, stage: str) -> None:
        self._turns, self._stage = turns, stage

    @property
    def models(self) -> dict[str, Any]:
        """What its model references resolved to."""
        return self._turns.models(self._stage)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked for by copies and protocols, not by the pipeline
            raise AttributeError(name)
        return getattr(self._turns.backend(self._stage), name)


def lazy_stages(recipe: Recipe) -> tuple[OffloadManager, BackendCache]:
    """The stages of a recipe as `build_backends` takes them, loaded in turns.

    Raises:
        InputError: a stage that cannot be built.
    """
    checked = check_backends(recipe)
    turns = OffloadManager(checked)
    return turns, {stage: (made_from, _deferred(turns, stage, made_from[0])) for stage, made_from in checked.items()}


def _deferred(turns: OffloadManager, stage: str, cls: type) -> LazyBackend:
    """A `Deferred` that has the public methods of a class, so that asking whether it has one loads nothing."""
    methods = {
        name: _passing_on(name) for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))
    }
    made: LazyBackend = type(f"Deferred{cls.__name__}", (LazyBackend,), methods)(turns, stage)
    return made


def _passing_on(name: str) -> Callable[..., Any]:
    def method(self: LazyBackend, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._turns.backend(self._stage), name)(*args, **kwargs)

    method.__name__ = name
    return method
