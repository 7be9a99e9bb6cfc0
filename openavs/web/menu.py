"""Which recipes the page offers: the one it was started with, and those that need nothing but what is on this disk."""

from __future__ import annotations

from dataclasses import dataclass

from openavs.config import resources
from openavs.config.recipe import Recipe, load_recipe
from openavs.errors import InputError, ModelError
from openavs.models.catalog import find_known_model, is_only_synthetic
from openavs.models.hub import resolve
from openavs.registry import Registry
from openavs.utils.optional_deps import EXTRAS
from openavs.web.settings import ServerConfig

UNFIT = frozenset({"openai", "oracle"})
"""Backends that a page does not offer unasked: one sends what was heard elsewhere, one needs a benchmark's labels."""


@dataclass(frozen=True)
class ModelFacts:
    """A model as a visitor should know it."""

    stage: str
    title: str
    reference: str
    license: str


@dataclass(frozen=True)
class RecipeOption:
    """One recipe of the page; `threshold` is its own box threshold, with which the slider begins."""

    recipe: Recipe
    models: tuple[ModelFacts, ...]

    @property
    def name(self) -> str:
        """What it is called on the page."""
        return self.recipe.name

    @property
    def threshold(self) -> float:
        """The score from which on a box is kept."""
        return self.recipe.filtering.box_threshold

    @property
    def only_synthetic(self) -> bool:
        """Whether its models know nothing but the synthetic world."""
        return is_only_synthetic(dict.fromkeys(model.reference for model in self.models))

    @property
    def asks_a_server(self) -> bool:
        """Whether what is heard is sent to another machine's language model."""
        return any(section.use == "openai" for section in self.recipe.stages().values())


def recipe_options(settings: ServerConfig) -> dict[str, RecipeOption]:
    """By name: the recipe of the settings with its overrides first, then all shipped ones that can run as they are.

    Raises:
        InputError: there is no such recipe, or it is a student's, which hears no words.
    """
    shared = {"device": settings.device, "dtype": settings.dtype, "offline": "true" if settings.offline else None}
    changes = [f"{key}={value}" for key, value in shared.items() if value is not None]
    first = load_recipe(settings.pipeline, [*settings.overrides, *changes])
    if first.student is not None:
        raise InputError(f"{first.name} is a trained student, which hears no words to show; give a recipe")
    others = (load_recipe(name, [*changes, "offline=true"]) for name in resources.names("pipelines"))
    found = [first, *(recipe for recipe in others if recipe.name != first.name and is_here(recipe))]
    return {recipe.name: RecipeOption(recipe, _models(recipe)) for recipe in found}


def is_here(recipe: Recipe) -> bool:
    """Whether the recipe runs with what is installed and on this disk, and keeps to itself what it hears."""
    for stage, section in recipe.stages().items():
        if section.use in UNFIT:
            return False
        extra = Registry(stage).entry(section.use).extra
        if extra is not None and (extra not in EXTRAS or EXTRAS[extra].version() is None):
            return False
    try:
        for reference in recipe.models().values():
            resolve(reference, offline=True)
    except ModelError:
        return False
    return True


def _models(recipe: Recipe) -> tuple[ModelFacts, ...]:
    return tuple(_facts(stage, reference) for stage, reference in recipe.models().items())


def _facts(stage: str, reference: str) -> ModelFacts:
    """From the table of known models, else from the model's own card if it is on this disk."""
    if known := find_known_model(reference):
        return ModelFacts(stage, known.title, reference, known.license)
    try:
        license = resolve(reference, offline=True).license
    except ModelError:
        license = None
    return ModelFacts(stage, reference.rpartition("/")[2], reference, license or "not stated")
