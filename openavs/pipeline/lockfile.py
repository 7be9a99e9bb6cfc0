"""A recipe whose models are pinned by a lock file.

A recipe names branches (`hf:org/name@main`), which move. A lock file says which commit each of them stood for when it
was first used, so that another machine, or this one next year, loads the same weights. It works as lock files do
elsewhere: what is pinned is used as pinned, what is not is resolved and added, and nothing is ever moved or removed by
a run; to take newer weights, delete the line or the file. One file may serve several recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openavs.config.recipe import Recipe, recipe_from_dict
from openavs.errors import InputError
from openavs.models.hub import ModelLockfile, ResolvedModel
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import BackendCache

__all__ = ["add_to_lock", "build_pinned_pipeline", "load_lock", "pin_recipe"]


def load_lock(path: Path) -> ModelLockfile:
    """The pins of a lock file, none if it is still to be made.

    Raises:
        InputError: the file is malformed, or could not be written where it is; said before any model is loaded.
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
    """The recipe with the commit in every model reference that the lock knows; embedded and local models stay."""
    data = recipe.to_dict()
    for stage, section in recipe.stages().items():
        data[stage] = {"use": section.use, **{name: _pinned(value, lock) for name, value in section.options.items()}}
    return recipe_from_dict(data, base=recipe.base)


def build_pinned_pipeline(recipe: Recipe, lock: ModelLockfile, held: BackendCache | None = None) -> Pipeline:
    """Builds the recipe's pipeline with its models at the commits of the lock (`held`: see `build_backends`).

    What its results record as their recipe keeps the recipe's own names, and the commits stand where they always do,
    under `models`. For the recipe is what was asked for and the commit what it was answered with: a run that made the
    lock file and one that is pinned by it are the same run, and the second must be able to go on in the folder of the
    first.
    """
    pipe = Pipeline.from_recipe(pin_recipe(recipe, lock), held)
    pipe.recipe = recipe.to_dict()
    return pipe


def add_to_lock(path: Path, models: Mapping[str, Mapping[str, Any]]) -> ModelLockfile:
    """Adds what `Pipeline.models` says was loaded to a lock file, which is made if it is absent.

    Pins that are there stay as they are, and a file that lacks nothing is not written. The file is read anew, because
    another run may have added to it meanwhile.
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
