"""Finds the class that a recipe names: a built-in backend, an installed plug-in, or a class in a file.

Nothing is imported before it is asked for, so that a short name costs nothing and a missing optional package
matters only to whoever uses it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from openavs.config.options import bind_options
from openavs.errors import InputError
from openavs.models.compile import OPTION, check_compile, compile_backend
from openavs.stages.backends import BUILT_IN, BackendSpec
from openavs.stages.contracts import check_methods
from openavs.stages.segmenters.base import validate_stages
from openavs.utils.plugins import is_file_reference, load_file_class
from openavs.utils.text import did_you_mean

if TYPE_CHECKING:
    from openavs.config.recipe import Recipe
    from openavs.stages.captioners.base import Captioner
    from openavs.stages.detectors.base import Detector
    from openavs.stages.segmenters.base import PhraseSegmenter, Segmenter
    from openavs.stages.trackers.base import Tracker
    from openavs.stages.translators.base import Translator
    from openavs.stages.verifiers.base import Verifier

_log = logging.getLogger(__name__)

STAGES = ("captioner", "translator", "detector", "segmenter", "verifier", "tracker")


class Backends(NamedTuple):
    """The stages of a recipe, built; None for those that it has not."""

    captioner: Captioner
    translator: Translator
    detector: Detector | None
    segmenter: Segmenter | PhraseSegmenter | None
    verifier: Verifier | None
    tracker: Tracker | None


class Registry:
    """The backends of one stage.

    >>> Registry("translator").names()[:3]
    ['lexicon', 'llm', 'none']
    """

    def __init__(self, stage: str) -> None:
        if stage not in STAGES:
            raise InputError(f"there is no stage {stage!r}; {did_you_mean(stage, STAGES)}")
        self.stage = stage

    def entries(self) -> list[BackendSpec]:
        """All backends, the built-in ones first; a plug-in cannot take a built-in name."""
        known = {entry.name: entry for entry in BUILT_IN if entry.stage == self.stage}
        for entry in _plugins(self.stage):
            if entry.name in known:
                _log.warning("the plug-in %s of %s is ignored: the name is taken", entry.name, entry.origin)
                continue
            known[entry.name] = entry
        return list(known.values())

    def names(self) -> list[str]:
        """The short names, sorted."""
        return sorted(entry.name for entry in self.entries())

    def entry(self, name: str) -> BackendSpec:
        """The backend of that name, or an `InputError` that names the nearest."""
        for entry in self.entries():
            if entry.name == name:
                return entry
        hint = "" if ":" not in name else " (a class in a file is written ./file.py:Class)"
        raise InputError(f"there is no {self.stage} {name!r}{hint}; {did_you_mean(name, self.names())}")

    def load(self, use: str, base: Path | None = None) -> type:
        """The class behind a short name or `./file.py:Class` (looked for beside the recipe, then in the cwd)."""
        if is_file_reference(use):
            return load_file_class(use, base)
        return _import_target(self.entry(use))

    def check(
        self,
        use: str,
        options: Mapping[str, Any],
        shared: Mapping[str, Any] | None = None,
        base: Path | None = None,
    ) -> tuple[type, dict[str, Any]]:
        """The class and its options, checked and converted, for `make`; builds nothing. See `build`."""
        cls = self.load(use, base)
        local = {key: local_path(value, base) for key, value in options.items()}
        how = None if is_file_reference(use) else check_compile(use, local.pop(OPTION, None))
        bound = bind_options(cls, local, shared, stage=self.stage, name=use)
        return cls, bound if how is None else {**bound, OPTION: (use, how)}

    def build(
        self,
        use: str,
        options: Mapping[str, Any],
        shared: Mapping[str, Any] | None = None,
        base: Path | None = None,
    ) -> Any:
        """Makes the backend.

        Args:
            use: a short name or `./file.py:Class`.
            options: its options from the recipe; a text that begins with `./` or `../` is a path and is looked for
                from `base`, then from the working directory.
            shared: `device`, `dtype`, `offline`: passed on only where the constructor has them and the options
                do not say otherwise.
            base: the folder of the recipe.

        Raises:
            InputError: unknown name, file, class or option, an option of the wrong type, or a package that is absent.
        """
        return instantiate(*self.check(use, options, shared, base))


def instantiate(cls: type, options: Mapping[str, Any]) -> Any:
    """A backend of what `Registry.check` gave: its class, and its options with `compile` among them."""
    arguments = dict(options)
    compiled = arguments.pop(OPTION) if isinstance(options.get(OPTION), tuple) else None  # a plug-in may have its own
    backend = cls(**arguments)
    if compiled is not None:
        compile_backend(backend, *compiled)
    return backend


BackendCache = dict[str, tuple[tuple[type, dict[str, Any]], Any]]
"""By stage: the class and arguments that a backend was made from, and the backend."""


def build_backends(recipe: Recipe, held: BackendCache | None = None) -> Backends:
    """Makes the recipe's stages; all are checked before the first one loads a model.

    Recipes that are run one after the other share what they have in common by giving each of these calls the same
    `held`: a stage made before from equal arguments is taken from it (backends have no hidden state), what no longer
    fits is let go before anything new is loaded, and what was made is put in.
    """
    held = {} if held is None else held
    checked = check_backends(recipe)
    for stage in [stage for stage, (made_from, _) in held.items() if made_from != checked.get(stage)]:
        del held[stage]
    for stage, (cls, arguments) in checked.items():
        if stage not in held:
            held[stage] = ((cls, arguments), instantiate(cls, arguments))
    made: dict[str, Any] = {stage: held[stage][1] if stage in held else None for stage in STAGES}
    return Backends(**made)


def check_backends(recipe: Recipe) -> dict[str, tuple[type, dict[str, Any]]]:
    """By stage: the class and its checked arguments; builds nothing. Raises InputError as `Registry.build` does."""
    shared = {"device": recipe.device, "dtype": recipe.dtype, "offline": recipe.offline}
    checked = {
        stage: Registry(stage).check(section.use, section.options, shared, recipe.base)
        for stage, section in recipe.stages().items()
    }
    for stage, (cls, _) in checked.items():
        check_methods(stage, recipe.stages()[stage].use, cls)
    validate_stages(
        *(checked[stage][0] if stage in checked else None for stage in ("detector", "segmenter", "tracker"))
    )
    return checked


@cache
def _plugins(stage: str) -> tuple[BackendSpec, ...]:
    found = sorted(entry_points(group=f"openavs.{stage}"), key=lambda point: point.name)
    return tuple(
        BackendSpec(stage, point.name, point.value, "a plug-in", origin=point.dist.name if point.dist else "?")
        for point in found
    )


def _import_target(entry: BackendSpec) -> type:
    module, _, attribute = entry.target.partition(":")
    try:
        loaded = import_module(module)
    except ImportError as problem:
        missing = (problem.name or "").partition(".")[0]
        if missing == "openavs" and entry.origin == "openavs":
            raise  # not an optional package but a fault of this one: nobody can mend it with pip
        wanted = f'"openavs[{entry.extra}]"' if entry.extra else missing or entry.origin
        raise InputError(
            f"the {entry.stage} {entry.name!r} cannot be loaded ({problem}): pip install {wanted}"
        ) from problem
    if not isinstance(cls := getattr(loaded, attribute, None), type):
        raise InputError(f"the {entry.stage} {entry.name!r} of {entry.origin} is not a class: {entry.target}")
    return cls


def local_path(value: Any, base: Path | None) -> Any:
    """A `./` or `../` path made absolute, from the recipe's folder if it is there, else from the cwd."""
    if not isinstance(value, str) or not value.startswith(("./", "../")):
        return value
    for folder in (base, Path.cwd()):
        if folder is not None and (path := folder / value).exists():
            return str(path.resolve())
    return value
