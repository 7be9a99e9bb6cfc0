"""Writes docs/recipes.md from the recipe files: `python docs/scripts/recipe_table.py`.

`--readme` prints the shorter table of the README instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from openavs.config import resources
from openavs.config.recipe import Recipe, load_recipe, stage_of
from openavs.models.catalog import KnownModel, find_known_model
from openavs.registry import Registry

PAGE = Path(__file__).parents[1] / "recipes.md"
STAGES = ("captioner", "translator", "detector", "segmenter", "verifier", "tracker", "reasoner")
HEAD = """# Recipes

A recipe is one YAML file in [`pipelines/`](../pipelines), headed by the command that runs it. `openavs show NAME`
prints it, and `key=value` after a command changes one entry. `python docs/scripts/recipe_table.py` writes this page.

"""
SIZES = """
## Download and memory

The download of a recipe, and the memory of its weights: on a CPU in float32 except for language models, which stay in
16 bits, and on a GPU in bfloat16 except for a stage that its recipe keeps in float32. Working memory is added to that
([estimates](performance.md#stage-by-stage)). Models that do not fit together are loaded one stage group at a time.
Figures are approximate.

"""
MODELS = """
## Models and their licenses

The licenses of the weights, as the model cards state them. Those that are **not permissive** are marked: read them
before use. `run.json` of a result records the license and commit of the loaded models.
The speed is fast for less than 0.5 TFLOP for a frame, a sound or an answer, medium for less than 1.5, else slow.

"""
EXTRAS = """
## Backends with optional packages

`openavs check` lists which are installed and compatible. Some install other versions of torch, numpy or torchvision, so
read first: [vllm](translators.md#vllm-in-this-process) (an environment of its own),
[laion-clap](captioners.md#the-package-laion-clap), [groundingdino-py](detectors.md#the-package-groundingdino-py),
[timm](verifiers.md#installation).

"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Format a Markdown table."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def facts(reference: str) -> KnownModel:
    """Return the catalog entry of a model.

    Raises:
        SystemExit: the catalog has no line about it.
    """
    if (known := find_known_model(reference)) is None:
        raise SystemExit(f"{reference}: add a line about it to openavs/assets/tables/models.tsv")
    return known


def model_title(recipe: Recipe, stage: str) -> str:
    """Return the titles of a stage's models, else the names of its backends; `-` without the stage."""
    models, named = recipe.models(), []
    for key, section in recipe.stages().items():
        if stage_of(key) == stage:
            title = facts(models[key]).title if key in models else str(section.options.get("model") or section.use)
            named.append(title if key in models or section.use == "none" else f"`{title}`")
    return ", ".join(named) or "-"


def licenses(recipe: Recipe) -> str:
    """Return the licenses of a recipe's weights, those that are not permissive in bold."""
    found: dict[str, bool] = {}
    for model in recipe.models().values():
        known = facts(model)
        found[known.license] = known.permissive == "no"
    return ", ".join(f"**{name}**" if bad else name for name, bad in found.items()) or "no weights"


def gigabytes(value: float) -> str:
    """Format gigabytes as `1.7 GB` or `20 MB`."""
    return f"{value:.1f} GB" if value >= 0.1 else f"{value * 1000:.0f} MB"


def memory(recipe: Recipe, bytes_each: int) -> float:
    """Return the GB of all weights at `bytes_each` bytes per parameter.

    A stage with the option float32 takes 4 bytes, a language model that is stored in 16 bits takes 2.
    """
    total = 0.0
    for stage, model in recipe.models().items():
        section, known = recipe.stages()[stage], facts(model)
        exact = section.options.get("dtype") in ("float32", "fp32")
        half = section.use in ("llm", "audio-llm", "reasoner") and known.stored == "bfloat16"
        total += known.memory(4 if exact else 2 if half else bytes_each)
    return total


def main_rows(recipes: Iterable[Recipe], stages: Iterable[str]) -> list[list[str]]:
    """Return a row per recipe: its name, its stages, its licenses."""
    return [[f"`{r.name}`", *(model_title(r, stage) for stage in stages), licenses(r)] for r in recipes]


def all_recipes() -> list[Recipe]:
    return [load_recipe(name) for name in resources.names("pipelines")]


def page(recipes: list[Recipe]) -> str:
    """Return the text of docs/recipes.md."""
    used = [stage for stage in STAGES if any(stage in map(stage_of, recipe.stages()) for recipe in recipes)]
    head = ["recipe", *used, "licenses of the weights"]
    text = HEAD + table(head, main_rows(recipes, used)) + "\n"
    text += "".join(f"- `{recipe.name}`: {recipe.summary}\n" for recipe in recipes)
    text += SIZES + table(["recipe", "download", "weights on a CPU", "weights on a GPU"], map(sizes, recipes))
    models = {model: facts(model) for recipe in recipes for model in recipe.models().values()}
    rows = [
        [known.title, f"`{model}`", marked_license(known), f"{known.parameters:,.0f} M", known.speed]
        for model, known in models.items()
    ]
    text += MODELS + table(["model", "reference", "license", "parameters", "speed"], sorted(rows))
    return text + extras()


def sizes(recipe: Recipe) -> list[str]:
    """Return a row with the download and the memory of a recipe's weights."""
    download = sum(facts(model).download for model in dict.fromkeys(recipe.models().values()))
    return [
        f"`{recipe.name}`",
        gigabytes(download) if download else "none",
        gigabytes(memory(recipe, 4)),
        gigabytes(memory(recipe, 2)),
    ]


def marked_license(known: KnownModel) -> str:
    """Return the license of a model with a mark if it is not permissive."""
    notes = {"yes": "", "no": " (**not permissive**)", "unknown": " (not known here)"}
    return known.license + notes[known.permissive]


def extras() -> str:
    """Return the table of the backends with optional packages."""
    entries = [entry for stage in STAGES for entry in Registry(stage).entries()]
    rows = [
        [f"`{entry.name}`", entry.stage, f'`pip install "openavs[{entry.extra}]"`'] for entry in entries if entry.extra
    ]
    return EXTRAS + table(["backend", "stage", "install"], rows)


def readme(recipes: list[Recipe]) -> str:
    """Return the shorter table of the README."""
    return table(["recipe", *STAGES[:4], "license of the weights"], main_rows(recipes, STAGES[:4]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", action="store_true", help="print the README's table and write nothing")
    if parser.parse_args().readme:
        sys.stdout.write(readme(all_recipes()))
    else:
        PAGE.write_text(page(all_recipes()), encoding="utf-8")
