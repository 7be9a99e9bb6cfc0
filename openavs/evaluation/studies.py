"""Ablation studies: eval/ablations/*.yaml, each a list of variants of a recipe that are to be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from openavs.config import resources
from openavs.config.errors import first_error
from openavs.config.recipe import Recipe, load_recipe
from openavs.errors import InputError
from openavs.registry import check_backends
from openavs.utils.fs import safe_id
from openavs.utils.strict_yaml import read_yaml
from openavs.utils.text import did_you_mean

EXAMPLE = "see eval/ablations/threshold.yaml for a complete study"
Text = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class AblationVariant(_Section):
    """One way to run a recipe: its overrides as on the command line (whole sections, too: `translator={use: none}`).

    `at` is its place on the study's axis, `published` the variant of eval/published.csv that it repeats.
    """

    name: Text
    overrides: list[Text]
    at: float | None = None
    published: Text | None = None


class AblationStudy(_Section):
    """A study as its file says it.

    `mirrors` names the table it repeats, `pipeline` the recipe it is made for, `published` the ablation of
    eval/published.csv that holds the published figures, `axis` what a curve has along its axis, and `baseline` the
    variant that the others are compared with (the first one by default).
    """

    name: Text
    title: Text
    variants: Annotated[list[AblationVariant], Field(min_length=1)]
    mirrors: str = ""
    about: str = ""
    pipeline: Text | None = None
    published: Text | None = None
    axis: Text | None = None
    baseline: Text | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants have the same name")
        for name in names:
            if safe_id(name) != name:
                raise ValueError(f"the variant {name!r} cannot name a folder; use letters, digits and dashes")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"the baseline {self.baseline!r} is none of the variants")
        if self.axis is not None and any(variant.at is None for variant in self.variants):
            raise ValueError("with an axis, every variant needs its place on it ('at')")
        return self

    def choose(self, names: Sequence[str] | None) -> AblationStudy:
        """The study with some of its variants only, in its own order; the first is the baseline if its own is not in.

        Raises:
            InputError: no such variant (the nearest is named).
        """
        known = [variant.name for variant in self.variants]
        for name in names or ():
            if name not in known:
                raise InputError(f"the study {self.name!r} has no variant {name!r}; {did_you_mean(name, known)}")
        kept = [variant for variant in self.variants if not names or variant.name in names]
        baseline = self.baseline if self.baseline in {variant.name for variant in kept} else kept[0].name
        return self.model_copy(update={"variants": kept, "baseline": baseline})


def load_study(name_or_path: str | Path) -> AblationStudy:
    """A study by its short name or its file.

    Raises:
        InputError: no such study, or a file that is not one.
    """
    path = _find(name_or_path)
    try:
        return AblationStudy.model_validate({"name": path.stem, **read_yaml(path)})
    except ValidationError as problem:
        raise InputError(f"the study {path}: {first_error(problem, AblationStudy, EXAMPLE)}") from None


def study_names() -> list[str]:
    """The short names of the studies, sorted."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def study_recipes(study: AblationStudy, pipeline: str, overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """Every variant's recipe, by its name; all are checked, so that none fails hours after the first began.

    Raises:
        InputError: a variant does not fit the recipe, or names a backend or an option that does not exist.
    """
    recipes: dict[str, Recipe] = {}
    for variant in study.variants:
        try:
            recipes[variant.name] = load_recipe(pipeline, [*overrides, *variant.overrides])
            check_backends(recipes[variant.name])
        except InputError as problem:
            raise InputError(f"the variant {variant.name!r} of {study.name!r} does not work: {problem}") from problem
    return recipes


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path.resolve()
    for folder in _folders():
        if (shipped := folder / f"{Path(name_or_path).name.removesuffix('.yaml')}.yaml").is_file():
            return shipped
    raise InputError(f"there is no study {str(name_or_path)!r}; {did_you_mean(str(name_or_path), study_names())}")


def _folders() -> list[Path]:
    return [folder / "ablations" for folder in resources.folders("eval")]
