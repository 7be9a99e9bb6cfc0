"""Registry of backends: built-in ones, installed plug-ins (entry points), and classes in files.

Backends are imported when they are first used, so that a missing optional package affects only its own backend.
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
from openavs.config.recipe import stage_of
from openavs.errors import InputError
from openavs.models.compile import OPTION, check_compile, compile_backend
from openavs.stages.backends import BUILT_IN, BackendSpec
from openavs.stages.contracts import check_methods
from openavs.stages.segmenters.base import validate_stages
from openavs.utils.plugins import is_file_reference, load_file_class
from openavs.utils.text import did_you_mean

if TYPE_CHECKING:
    from openavs.config.recipe import Recipe
    from openavs.stages.captioners.base import Captioner, EventCaptioner
    from openavs.stages.detectors.base import Detector
    from openavs.stages.reasoners.base import Reasoner
    from openavs.stages.segmenters.base import PhraseSegmenter, Segmenter
    from openavs.stages.trackers.base import Tracker
    from openavs.stages.translators.base import Translator
    from openavs.stages.verifiers.base import TemporalVerifier, Verifier

logger = logging.getLogger(__name__)

STAGES = ("captioner", "translator", "detector", "segmenter", "verifier", "tracker", "reasoner")


class Backends(NamedTuple):
    """The backends of a recipe; None for stages that it lacks. The verifiers run in their order."""

    captioner: Captioner | EventCaptioner
    translator: Translator
    detector: Detector | None
    segmenter: Segmenter | PhraseSegmenter | None
    verifiers: tuple[Verifier | TemporalVerifier, ...]
    tracker: Tracker | None
    reasoner: Reasoner | None


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
        """Return all backends, the built-in ones first; a plug-in cannot take a built-in name."""
        known = {entry.name: entry for entry in BUILT_IN if entry.stage == self.stage}
        for entry in _plugins(self.stage):
            if entry.name in known:
                logger.warning("the plug-in %s of %s is ignored: the name is taken", entry.name, entry.origin)
                continue
            known[entry.name] = entry
        return list(known.values())

    def names(self) -> list[str]:
        """Return the short names, sorted."""
        return sorted(entry.name for entry in self.entries())

    def entry(self, name: str) -> BackendSpec:
        """Return the backend of a name; the InputError for an unknown one suggests the nearest."""
        for entry in self.entries():
            if entry.name == name:
                return entry
        hint = "" if ":" not in name else " (a class in a file is written ./file.py:Class)"
        raise InputError(f"there is no {self.stage} {name!r}{hint}; {did_you_mean(name, self.names())}")

    def load(self, use: str, base: Path | None = None) -> type:
        """Return the class of a short name or of `./file.py:Class` (relative to the recipe, then to the cwd)."""
        if is_file_reference(use):
            return load_file_class(use, base)
        return _import_target(self.entry(use))

    def check(
        self,
        use: str,
        options: Mapping[str, Any],
        shared: Mapping[str, Any] | None = None,
        base: Path | None = None,
        key: str | None = None,
    ) -> tuple[type, dict[str, Any]]:
        """Return the class and its validated options, for `instantiate`.

        Arguments as in `build`; `key` is that of the section in the recipe, for messages.
        """
        cls = self.load(use, base)
        local = {key: local_path(value, base) for key, value in options.items()}
        how = None if is_file_reference(use) else check_compile(use, local.pop(OPTION, None))
        bound = bind_options(cls, local, shared, stage=key or self.stage, name=use)
        return cls, bound if how is None else {**bound, OPTION: (use, how)}

    def build(
        self,
        use: str,
        options: Mapping[str, Any],
        shared: Mapping[str, Any] | None = None,
        base: Path | None = None,
    ) -> Any:
        """Build a backend.

        Args:
            use: a short name or `./file.py:Class`.
            options: its options from the recipe; a text that begins with `./` or `../` is a path relative to `base`,
                or else to the working directory.
            shared: `device`, `dtype`, `offline`; passed on if the constructor has them and the options do not.
            base: the folder of the recipe.

        Raises:
            InputError: unknown name, file, class or option, an option of the wrong type, or an absent package.
        """
        return instantiate(*self.check(use, options, shared, base))


def instantiate(cls: type, options: Mapping[str, Any]) -> Any:
    """Build a backend from the class and options that `Registry.check` returned."""
    arguments = dict(options)
    compiled = (
        arguments.pop(OPTION) if isinstance(options.get(OPTION), tuple) else None
    )  # a plug-in may have an option of that name
    backend = cls(**arguments)
    if compiled is not None:
        compile_backend(backend, *compiled)
    return backend


BackendCache = dict[str, tuple[tuple[type, dict[str, Any]], Any]]
"""Key of a stage (`Recipe.stages`) -> (class and arguments of a backend, the backend)."""


def build_backends(recipe: Recipe, held: BackendCache | None = None) -> Backends:
    """Build the backends of a recipe; all are validated before the first one loads a model.

    Args:
        recipe: the recipe.
        held: backends of earlier calls. Those with equal arguments are reused (backends have no hidden state), others
            are released before new ones are loaded, and the new ones are added.
    """
    held = {} if held is None else held
    checked = check_backends(recipe)
    for stage in [stage for stage, (made_from, _) in held.items() if made_from != checked.get(stage)]:
        del held[stage]
    for stage, (cls, arguments) in checked.items():
        if stage not in held:
            held[stage] = ((cls, arguments), instantiate(cls, arguments))
    made: dict[str, Any] = {key: held[key][1] for key in checked}
    single: dict[str, Any] = {stage: made.get(stage) for stage in STAGES if stage != "verifier"}
    return Backends(**single, verifiers=tuple(own for key, own in made.items() if stage_of(key) == "verifier"))


def check_backends(recipe: Recipe) -> dict[str, tuple[type, dict[str, Any]]]:
    """Return key of a stage -> class and validated arguments, without building; raises like `Registry.build`."""
    shared = {"device": recipe.device, "dtype": recipe.dtype, "offline": recipe.offline}
    checked = {
        key: Registry(stage_of(key)).check(section.use, section.options, shared, recipe.base, key)
        for key, section in recipe.stages().items()
    }
    for key, (cls, _) in checked.items():
        check_methods(stage_of(key), recipe.stages()[key].use, cls)
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
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "openavs" and entry.origin == "openavs":
            raise  # a fault of this package, which pip cannot fix
        wanted = f'"openavs[{entry.extra}]"' if entry.extra else missing or entry.origin
        raise InputError(
            f"the {entry.stage} {entry.name!r} cannot be loaded ({error}): pip install {wanted}"
        ) from error
    if not isinstance(cls := getattr(loaded, attribute, None), type):
        raise InputError(f"the {entry.stage} {entry.name!r} of {entry.origin} is not a class: {entry.target}")
    return cls


def local_path(value: Any, base: Path | None) -> Any:
    """Make a `./` or `../` path absolute: relative to the recipe's folder if it exists there, else to the cwd."""
    if not isinstance(value, str) or not value.startswith(("./", "../")):
        return value
    for folder in (base, Path.cwd()):
        if folder is not None and (path := folder / value).exists():
            return str(path.resolve())
    return value
