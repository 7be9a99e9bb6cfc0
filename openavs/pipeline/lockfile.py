"""Lock files: recipes whose models are pinned to commits.

A recipe names branches (`hf:org/name@main`), which move. A lock file records the commit of each branch at its first
use, so that every machine loads the same weights. Pinned models are used as pinned, others are resolved and added. A
run never changes or removes a pin; to get newer weights, delete the line or the file. One file may serve several
recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openavs.config.options import find_section
from openavs.config.recipe import Recipe, recipe_from_dict
from openavs.errors import InputError, ModelError
from openavs.models.hub import COMMIT, is_pinned, split_reference
from openavs.utils.fs import atomic_write
from openavs.utils.serialization import parse_yaml

_HEADER = "# The commit of each model reference; to update one, delete its line.\n"


@dataclass(frozen=True)
class ModelLockfile:
    """The commits that hub references are pinned to: a small YAML file of `reference: commit` lines."""

    pins: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path) -> ModelLockfile:
        """Read a lock file (YAML or JSON); a missing file pins nothing.

        Raises:
            ModelError: the file is malformed.
        """
        if not Path(path).exists():
            return cls()
        try:
            pins = parse_yaml(Path(path).read_text(encoding="utf-8")) or {}
        except (InputError, UnicodeDecodeError) as error:
            line = str(error).partition("\n")[0]
            raise ModelError(f"the lock file {path} is not YAML ({line:.160}); fix or delete it") from error
        if not isinstance(pins, dict) or not all(COMMIT.fullmatch(str(commit)) for commit in pins.values()):
            raise ModelError(f"the lock file {path} must contain lines 'reference: 40-digit commit'; fix or delete it")
        return cls({str(ref): str(commit) for ref, commit in pins.items()})

    def save(self, path: str | Path) -> None:
        """Write the file, sorted and atomically."""
        import yaml

        text = _HEADER + yaml.safe_dump(self.pins, sort_keys=True)
        atomic_write(Path(path), text.encode("utf-8"))

    def pin(self, ref: str, commit: str) -> ModelLockfile:
        """Return this lock with one more model; only references of the hub that name no commit are pinned."""
        if is_pinned(ref) or not ref.startswith("hf:"):
            return self
        return ModelLockfile({**self.pins, ref: commit})

    def pinned(self, ref: str) -> str:
        """Return the reference with its commit instead of its branch, or unchanged if it is not pinned."""
        commit = self.pins.get(ref)
        return f"hf:{split_reference(ref)[0]}@{commit}" if commit else ref


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
    for key in recipe.stages():
        if section := find_section(data, key):
            section.update({name: _pinned(value, lock) for name, value in section.items() if name != "use"})
    return recipe_from_dict(data, base=recipe.base)


def add_to_lock(path: Path, models: Mapping[str, Mapping[str, Any]]) -> ModelLockfile:
    """Add the commits of loaded models (`Pipeline.models`) to a lock file, which is created if necessary.

    Existing pins stay, and a complete file is not written. The file is read again first, because another run may have
    added to it.
    """
    lock = known = load_lock(path)
    for ref, facts in models.items():
        if ref not in lock.pins and facts.get("revision"):  # a server's models and a student's parts have none
            lock = lock.pin(ref, facts["revision"])
    if lock != known or not path.exists():
        try:
            lock.save(path)
        except OSError as error:
            raise InputError(f"the lock file {path} cannot be written ({error.strerror}); give another") from error
    return lock


def _pinned(value: Any, lock: ModelLockfile) -> Any:
    return lock.pinned(value) if isinstance(value, str) and value.startswith("hf:") else value
