"""`openavs list`: what recipes and backends there are."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from openavs.cli.common import Json, print_json


class What(StrEnum):
    """What can be listed."""

    recipes = "recipes"
    backends = "backends"


def list(
    what: Annotated[What | None, typer.Argument(help="recipes or backends; both by default.")] = None,
    as_json: Json = False,
) -> None:
    """List the recipes, with their models and licences, and the backends."""
    found: dict[str, Any] = {}
    if what in (None, What.recipes):
        found["recipes"] = _recipes()
    if what in (None, What.backends):
        found["backends"] = _backends()
    if as_json:
        print_json(found)
        return
    if "recipes" in found:
        _print_recipes(found["recipes"])
    if "backends" in found:
        _print_backends(found["backends"])


def _recipes() -> Any:
    from openavs import resources
    from openavs.recipes import load_recipe

    return [
        {
            "name": recipe.name,
            "summary": recipe.summary,
            "licence": recipe.licence,
            "models": recipe.models(),
            "backends": {stage: section.use for stage, section in recipe.stages().items()},
        }
        for recipe in map(load_recipe, resources.names("pipelines"))
    ]


def _backends() -> Any:
    from dataclasses import asdict

    from openavs.registry import STAGES, Registry

    return [asdict(entry) for stage in STAGES for entry in Registry(stage).entries()]


def _print_recipes(recipes: Any) -> None:
    print("Recipes (openavs segment VIDEO --pipeline NAME; openavs show NAME prints one)")
    for recipe in recipes:
        print(f"\n  {recipe['name']}\n    {recipe['summary']}")
        print(f"    licence: {recipe['licence'] or 'not stated'}")
        for stage, use in recipe["backends"].items():
            model = recipe["models"].get(stage)
            print(f"    {stage}: {use}{f', {model}' if model else ''}")
    print()


def _print_backends(backends: Any) -> None:
    print("Backends (use: NAME in a recipe, or use: ./file.py:Class for one of your own)")
    stage = None
    for entry in backends:
        if entry["stage"] != stage:
            stage = entry["stage"]
            print(f"\n  {stage}")
        extra = f' (pip install "openavs[{entry["extra"]}]")' if entry["extra"] else ""
        origin = "" if entry["origin"] == "openavs" else f" from {entry['origin']}"
        print(f"    {entry['name']:16} {entry['summary']}{origin}{extra}")
