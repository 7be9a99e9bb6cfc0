"""All findings together, and whether what was asked for can run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openavs.checks import machine
from openavs.checks.codecs import codecs
from openavs.checks.compute import compute
from openavs.checks.finding import CheckResult
from openavs.checks.packages import extras
from openavs.checks.recipes import check_recipe, environment_offline, hub_cache
from openavs.config.recipe import STUDENT, Recipe, load_recipe

FORMAT = 1  # of `to_dict`; raised when a field changes its meaning or goes
DEFAULT = "tiny"  # what is judged when no recipe is named: it needs nothing but openavs itself


@dataclass(frozen=True)
class Diagnosis:
    """What was found. `judged` is the recipe that decides whether this machine is ready."""

    judged: str
    offline: bool
    machine: Sequence[CheckResult]
    extras: Sequence[CheckResult]
    recipes: Sequence[CheckResult]

    @property
    def ready(self) -> bool:
        """Whether the judged recipe can run."""
        return not any(finding.state == "problem" for finding in (*self.machine, *self.extras, *self.recipes))

    def to_dict(self) -> dict[str, Any]:
        """The shape of `openavs check --json` (docs/check.md)."""
        from openavs import __version__

        groups = {"machine": self.machine, "extras": self.extras, "recipes": self.recipes}
        head = {"format": FORMAT, "openavs": __version__, "ready": self.ready, "judged": self.judged}
        lists = {name: [finding.to_dict() for finding in found] for name, found in groups.items()}
        return {**head, "offline": self.offline, **lists}


def diagnose(
    pipeline: str | None = None, overrides: Sequence[str] = (), *, offline: bool = False, out: Path = Path(".")
) -> Diagnosis:
    """Looks at this machine; with a recipe's name, file or `student:DIR`, at what that one needs.

    Args:
        pipeline: the recipe to judge; None judges `tiny` and lists what there is of the others.
        overrides: `key=value` changes of the recipe.
        offline: judge as if nothing may be downloaded.
        out: the folder that results would be written to.

    Raises:
        InputError, ModelError: the recipe does not exist or is not one.
    """
    from openavs.config import resources

    offline = offline or environment_offline()
    core = [machine.python(), machine.packages(), *compute()]
    found = [*core, machine.memory(), codecs(), *machine.torchvision(), *_disks(out)]
    if any(finding.state == "problem" for finding in core):  # without these no recipe can be looked at
        return Diagnosis(pipeline or DEFAULT, offline, found, extras(), [])
    if pipeline is not None:
        recipe = _load(pipeline, overrides)
        return Diagnosis(recipe.name, offline, found, extras(), [check_recipe(recipe, hub_cache(), offline).finding])
    recipes = [_listed(load_recipe(name), offline) for name in resources.names("pipelines")]
    found.append(_works_offline(recipes))
    return Diagnosis(DEFAULT, offline, found, extras(), recipes)


def _load(pipeline: str, overrides: Sequence[str]) -> Recipe:
    """A student's folder is read to make its recipe, which must not ask the network here."""
    return load_recipe(pipeline, [*overrides, *(["offline=true"] if pipeline.startswith(STUDENT) else ())])


def _listed(recipe: Recipe, offline: bool) -> CheckResult:
    finding = check_recipe(recipe, hub_cache(), offline).finding
    return finding if recipe.name == DEFAULT else finding.unasked()


def _disks(out: Path) -> list[CheckResult]:
    models = "free some, or set HF_HOME to a larger disk; the largest recipe downloads about 20 GB"
    return [
        machine.disk("cache", hub_cache(), "downloaded models", 20.0, models),
        machine.disk("out", out, "results", 2.0, "free some, or give --out on a larger disk"),
    ]


def _works_offline(recipes: Sequence[CheckResult]) -> CheckResult:
    able = [finding.facts["recipe"] for finding in recipes if finding.facts["offline"]]
    says = (
        f"With --offline these recipes work now: {', '.join(able)}." if able else "With --offline no recipe works now."
    )
    return CheckResult("offline", "ok" if able else "warning", says, facts={"recipes": able})
