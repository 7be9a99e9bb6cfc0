"""All checks together: whether a recipe can run on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openavs.checks import CheckResult, environment
from openavs.checks.recipe_check import check_recipe, hub_cache, is_environment_offline
from openavs.config.recipe import STUDENT, Recipe, load_recipe

FORMAT = 1  # of `to_dict`; incremented when a field is removed or changes its meaning
DEFAULT = "tiny"  # the recipe that is checked if none is given; it needs no downloads


@dataclass(frozen=True)
class Diagnosis:
    """All results. `recipe` is the name of the recipe that decides whether this machine is ready."""

    recipe: str
    offline: bool
    machine: Sequence[CheckResult]
    extras: Sequence[CheckResult]
    recipes: Sequence[CheckResult]

    @property
    def ready(self) -> bool:
        """Whether the recipe can run."""
        return not any(result.state == "problem" for result in (*self.machine, *self.extras, *self.recipes))

    def to_dict(self) -> dict[str, Any]:
        """Return the output of `openavs check --json` (docs/check.md)."""
        from openavs import __version__

        groups = {"machine": self.machine, "extras": self.extras, "recipes": self.recipes}
        head = {"format": FORMAT, "openavs": __version__, "ready": self.ready, "recipe": self.recipe}
        lists = {name: [result.to_dict() for result in results] for name, results in groups.items()}
        return {**head, "offline": self.offline, **lists}


def diagnose(
    pipeline: str | None = None, overrides: Sequence[str] = (), *, offline: bool = False, out: Path = Path(".")
) -> Diagnosis:
    """Check this machine and one recipe, or all recipes.

    Args:
        pipeline: name or file of the recipe, or `student:DIR`; None requires `tiny` and lists the others.
        overrides: `key=value` changes of the recipe.
        offline: whether downloads are forbidden.
        out: folder of the results.

    Raises:
        InputError, ModelError: the recipe does not exist or is invalid.
    """
    from openavs.config import resources

    offline = offline or is_environment_offline()
    core = [environment.check_python(), environment.check_packages(), *environment.check_torch()]
    machine = [*core, environment.check_memory(), environment.check_codecs(), *environment.check_torchvision()]
    machine += _disks(out)
    extras = environment.check_extras()
    if any(result.state == "problem" for result in core):  # recipes cannot be checked without these packages
        return Diagnosis(pipeline or DEFAULT, offline, machine, extras, [])
    if pipeline is not None:
        recipe = _load(pipeline, overrides)
        return Diagnosis(recipe.name, offline, machine, extras, [check_recipe(recipe, hub_cache(), offline).result])
    recipes = [check_recipe(load_recipe(name), hub_cache(), offline).result for name in resources.names("pipelines")]
    recipes = [result if result.facts["recipe"] == DEFAULT else result.as_optional() for result in recipes]
    return Diagnosis(DEFAULT, offline, [*machine, _offline_recipes(recipes)], extras, recipes)


def _load(pipeline: str, overrides: Sequence[str]) -> Recipe:
    # The recipe of a student is made from its folder; `offline` keeps that from resolving models on the hub.
    return load_recipe(pipeline, [*overrides, *(["offline=true"] if pipeline.startswith(STUDENT) else ())])


def _disks(out: Path) -> list[CheckResult]:
    fix = "free disk space, or set HF_HOME to a folder on a larger disk; the largest recipe downloads about 20 GB"
    return [
        environment.check_disk("cache", hub_cache(), "downloaded models", 20.0, fix),
        environment.check_disk("out", out, "results", 2.0, "free disk space, or give --out on a larger disk"),
    ]


def _offline_recipes(recipes: Sequence[CheckResult]) -> CheckResult:
    names = [result.facts["recipe"] for result in recipes if result.facts["offline"]]
    message = f"Recipes that run with --offline: {', '.join(names) or 'none'}."
    return CheckResult("offline", "ok" if names else "warning", message, facts={"recipes": names})
