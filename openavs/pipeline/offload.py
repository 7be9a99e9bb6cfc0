"""Offloading: loading the models of one group of stages unloads those of the other groups first.

There are three groups: captioner, translator, and the stages that work on the same frames. A pipeline of lazy backends
gives the same results. A change of groups costs a load; a window of clips therefore passes one group before the next
(`caching/build.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from openavs.config.recipe import STAGE_GROUPS, Recipe, stage_of
from openavs.models.device import empty_cuda_cache, release_memory
from openavs.registry import BackendCache, check_backends, instantiate


class OffloadManager:
    """Loads the backends of one stage group at a time.

    Args:
        checked: key of a stage -> class and arguments, as `check_backends` returns them.

    Attributes:
        loads: number of loads by key of a stage.
        most: largest number of backends that were in memory together.
    """

    def __init__(self, checked: Mapping[str, tuple[type, dict[str, Any]]]) -> None:
        self._checked = checked
        self._loaded: dict[str, Any] = {}
        self._models: dict[str, dict[str, Any]] = {}
        self.loads: Counter[str] = Counter()
        self.most = 0

    def backend(self, stage: str) -> Any:
        """Return the stage's backend; if it is not loaded, the other groups are unloaded first."""
        if stage not in self._loaded:
            [group] = [group for group in STAGE_GROUPS if stage_of(stage) in group]
            self.release(keep=group)
            self._loaded[stage] = instantiate(*self._checked[stage])
            self.loads[stage] += 1
            self.most = max(self.most, len(self._loaded))
        return self._loaded[stage]

    def models(self, stage: str) -> dict[str, Any]:
        """Return the resolved model references of a stage; loads it once if it never was."""
        if stage not in self._models:
            self._models[stage] = dict(getattr(self.backend(stage), "models", {}))
        return self._models[stage]

    def release(self, keep: tuple[str, ...] = ()) -> None:
        """Unload all stages except `keep` and return their memory to the system and the device."""
        unloaded = [stage for stage in self._loaded if stage_of(stage) not in keep]
        for stage in unloaded:
            del self._loaded[stage]
        if unloaded:
            release_memory()
            empty_cuda_cache()


class LazyBackend:
    """A backend that is loaded when one of its methods is called."""

    def __init__(self, manager: OffloadManager, stage: str) -> None:
        self._manager, self._stage = manager, stage

    @property
    def models(self) -> dict[str, Any]:
        """Resolved model references."""
        return self._manager.models(self._stage)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copies and protocols look these up; they must not load the model
            raise AttributeError(name)
        return getattr(self._manager.backend(self._stage), name)


def lazy_stages(recipe: Recipe) -> tuple[OffloadManager, BackendCache]:
    """Return the stages of a recipe as lazy backends, in the form that `build_backends` takes.

    Raises:
        InputError: a stage cannot be built.
    """
    checked = check_backends(recipe)
    manager = OffloadManager(checked)
    return manager, {stage: (made_from, _lazy(manager, stage, *made_from)) for stage, made_from in checked.items()}


def _lazy(manager: OffloadManager, stage: str, cls: type, options: Mapping[str, Any]) -> LazyBackend:
    """Make a lazy backend with the public methods of a class, so that `hasattr` does not load the model."""
    names = [name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))]
    methods = {name: _forwarding_method(name) for name in names}
    sees = options.get("contact_sheet", getattr(cls, "contact_sheet", False))
    facts = {"contact_sheet": sees, "takes_expression": sees or getattr(cls, "takes_expression", False)}
    backend: LazyBackend = type(f"Lazy{cls.__name__}", (LazyBackend,), {**facts, **methods})(manager, stage)
    return backend


def _forwarding_method(name: str) -> Callable[..., Any]:
    def method(self: LazyBackend, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._manager.backend(self._stage), name)(*args, **kwargs)

    method.__name__ = name
    return method
