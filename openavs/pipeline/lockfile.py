"""Lock files: recipes whose models are pinned to commits.

A recipe names branches (`hf:org/name@main`), which move. A lock file records the commit of each branch at its first
use, so that every machine loads the same weights. Pinned models are used as pinned, others are resolved and added. A
run never changes or removes a pin; to get newer weights, delete the line or the file. One file may serve several
recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openavs.config.recipe import Recipe, recipe_from_dict
from openavs.errors import InputError
from openavs.models.hub import ModelLockfile, ResolvedModel

__all__ = ["add_to_lock", "load_lock", "pin_recipe"]


def load_lock(path: Path) -> ModelLockfile:
    """Return the pins of a lock file; none if the file does not exist yet.

    Raises:
        InputError: the file is malformed, or could not be written in its place; raised before any model is loaded.
    """
    if path.is_dir():
        raise InputError(f"the lock file {path} is a folder; give the name of a file, such as {path / 'openavs.lock'}")
    if not path.parent.is_dir():
        raise InputError(f"the folder of the lock file {path} does not exist; make it first")
    try:
        return ModelLockfile.load(path)
    except OSError as error:
        raise InputError(f"the lock file {path} cannot be read ({error.strerror}); check its permissions") from error


def pin_recipe(recipe: Recipe, lock: ModelLockfile) -> Recipe:
    """Return the recipe with the commits of the lock in its model references; embedded and local models stay."""
    data = recipe.to_dict()
    for stage, section in recipe.stages().items():
        data[stage] = {"use": section.use, **{name: _pinned(value, lock) for name, value in section.options.items()}}
    return recipe_from_dict(data, base=recipe.base)


def add_to_lock(path: Path, models: Mapping[str, Mapping[str, Any]]) -> ModelLockfile:
    """Add the commits of loaded models (`Pipeline.models`) to a lock file, which is created if necessary.

    Existing pins stay, and a complete file is not written. The file is read again first, because another run may have
    added to it.
    """
    lock = known = load_lock(path)
    for ref, facts in models.items():
        if ref not in lock.pins and facts.get("revision"):  # a server's models and a student's parts have none
            lock = lock.pin(ResolvedModel(Path(facts["path"]), ref, facts["revision"]))
    if lock != known or not path.exists():
        try:
            lock.save(path)
        except OSError as error:
            raise InputError(f"the lock file {path} cannot be written ({error.strerror}); give another") from error
    return lock


def _pinned(value: Any, lock: ModelLockfile) -> Any:
    return lock.pinned(value) if isinstance(value, str) and value.startswith("hf:") else value
