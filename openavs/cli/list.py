"""`openavs list` and `openavs show NAME`: recipes, backends, prompts, benchmarks and ablation studies."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from openavs.cli import options as opt
from openavs.cli.output import echo, print_json
from openavs.errors import InputError
from openavs.utils.text import did_you_mean, pluralize


class ListTarget(StrEnum):
    """Lists of the command."""

    recipes = "recipes"
    backends = "backends"
    benchmarks = "benchmarks"
    studies = "studies"


def list_parts(
    target: Annotated[
        ListTarget | None,
        typer.Argument(
            help="List to print in full. Default: the recipes, one line each; with --json: all.", show_default=False
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """List the recipes by machine; or recipes, backends, benchmarks or ablation studies in full."""
    kinds = {
        ListTarget.recipes: (_recipes, _print_recipes),
        ListTarget.backends: (_backends, _print_backends),
        ListTarget.benchmarks: (_benchmarks, _print_benchmarks),
        ListTarget.studies: (_studies, _print_studies),
    }
    if target is None and not as_json:
        _print_overview(_recipes())
        return
    chosen = {kind: kinds[kind] for kind in kinds if target in (None, kind)}
    found = {kind.value: find() for kind, (find, _) in chosen.items()}
    if as_json:
        print_json(found)
        return
    for kind, (_, print_list) in chosen.items():
        print_list(found[kind.value])


def _recipes() -> Any:
    from openavs.config import resources
    from openavs.config.recipe import load_recipe
    from openavs.models.catalog import find_weights
    from openavs.pipeline.memory_estimate import recipe_license, recipe_machine

    return [
        {
            "name": recipe.name,
            "summary": recipe.summary,
            "license": recipe.license,
            "license_class": recipe_license(recipe),
            "machine": recipe_machine(recipe),
            "models": recipe.models(),
            "weights": {model: find_weights(model).to_dict() for model in dict.fromkeys(recipe.models().values())},
            "backends": {stage: section.use for stage, section in recipe.stages().items()},
        }
        for recipe in map(load_recipe, resources.names("pipelines"))
    ]


def _backends() -> Any:
    from dataclasses import asdict

    from openavs.registry import STAGES, Registry

    entries = [entry for stage in STAGES for entry in Registry(stage).entries()]
    return [asdict(entry) | {"installed": _installed(entry.extra)} for entry in entries]


def _installed(extra: str | None) -> str | None:
    """`core`, the version of the extra's package, or None if it is not installed."""
    from openavs.utils.optional_deps import EXTRAS

    if extra is None:
        return "core"
    return EXTRAS[extra].version() if extra in EXTRAS else None


def _benchmarks() -> Any:
    from openavs.config import resources
    from openavs.evaluation.benchmark import load_benchmark

    return [
        {
            "name": card.name,
            "title": card.title,
            "task": card.task,
            "layout": card.layout,
            "metric": card.metric,
            "splits": {name: split.model_dump() for name, split in card.splits.items()},
        }
        for card in map(load_benchmark, resources.names("eval"))
    ]


def _studies() -> Any:
    from openavs.evaluation.ablation import load_study, study_names

    return [
        {
            "name": study.name,
            "title": study.title,
            "mirrors": study.mirrors,
            "pipeline": study.pipeline,
            "variants": [variant.name for variant in study.variants],
        }
        for study in map(load_study, study_names())
    ]


def _print_overview(recipes: Any) -> None:
    """Print one line for each recipe, and where the details are."""
    from openavs.pipeline.memory_estimate import choose_recipe

    choice = choose_recipe()
    echo(f"The default recipe of this machine is {choice.name} ({choice.reason}): openavs segment VIDEO")
    echo("Another one: openavs segment VIDEO --pipeline NAME")
    rows = {recipe["name"]: (recipe["name"], _download(recipe), recipe["license_class"]) for recipe in recipes}
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
    for recipe in _by_machine(recipes):
        cells = (cell.ljust(width) for cell, width in zip(rows[recipe["name"]], widths, strict=True))
        echo(f"  {'  '.join(cells)}  {recipe['summary']}")
    echo("\nDetails: openavs list recipes, openavs show NAME, openavs check --pipeline NAME")
    echo("Other lists: openavs list backends, openavs list benchmarks, openavs list studies")


def _download(recipe: Any) -> str:
    """Return `1.7 GB to download`, summed over the models that are not here, or `ready`."""
    missing = [weights for weights in recipe["weights"].values() if weights["state"] in ("missing", "partial")]
    if not missing:
        return "ready"
    sizes = [weights["size_gb"] for weights in missing]
    return "to download" if None in sizes else f"{sum(sizes):.1f} GB to download"


def _by_machine(recipes: Any) -> Iterator[Any]:
    """Yield recipes ordered by their machine, and print the name of each machine before its first."""
    machine = None
    for recipe in sorted(recipes, key=lambda recipe: _machine_order(recipe["machine"])):
        if recipe["machine"] != machine:
            machine = recipe["machine"]
            echo(f"\n{machine}")
        yield recipe


def _print_recipes(recipes: Any) -> None:
    echo("Recipes (openavs segment VIDEO --pipeline NAME; openavs show NAME prints one)")
    for recipe in _by_machine(recipes):
        echo(f"\n  {recipe['name']}\n    {recipe['summary']}")
        echo(f"    license: {recipe['license'] or 'not stated'} ({recipe['license_class']})")
        for stage, use in recipe["backends"].items():
            model = recipe["models"].get(stage)
            about = f", {model} ({_describe_weights(recipe['weights'][model])})" if model else ""
            echo(f"    {stage}: {use}{about}")


def _machine_order(machine: str) -> tuple[int, int]:
    """Order laptops first, GPUs by their memory, and servers last."""
    gigabytes = [int(word) for word in machine.split() if word.isdigit()]
    return (0 if machine == "laptop CPU" else 1 if gigabytes else 2), sum(gigabytes)


def _describe_weights(weights: Any) -> str:
    """`cached` or `0.6 GB to download`, with a warning unless the license is permissive."""
    state = weights["state"]
    if weights["download"] and state in ("missing", "partial"):
        state = f"{weights['size_gb']:g} GB to download" if weights["size_gb"] else "to download"
    license = weights["license"] or "license unknown"
    warning = {"yes": "", "no": f"; NOT PERMISSIVE: {license}", "unknown": f"; {license}"}[weights["permissive"]]
    return f"{state}{warning}"


def _print_backends(backends: Any) -> None:
    echo("Backends (use: NAME in a recipe, or use: ./file.py:Class for a plug-in)")
    stage = None
    for entry in backends:
        if entry["stage"] != stage:
            stage = entry["stage"]
            echo(f"\n  {stage}")
        extra = "" if entry["installed"] == "core" else f" ({_describe_extra(entry)})"
        origin = "" if entry["origin"] == "openavs" else f" from {entry['origin']}"
        echo(f"    {entry['name']:16} {entry['summary']}{origin}{extra}")


def _describe_extra(entry: Any) -> str:
    """The installed version of a backend's extra, or the command that installs it."""
    if entry["installed"]:
        return f"installed: {entry['installed']}"
    return f'pip install "openavs[{entry["extra"]}]"'


def _print_benchmarks(benchmarks: Any) -> None:
    echo("Benchmarks (openavs evaluate NAME --root DIR; openavs score NAME --root DIR --predictions DIR)")
    for card in benchmarks:
        echo(f"\n  {card['name']:6} {card['title']}")
        echo(f"    metric: {' '.join(card['metric'].split())}")
        for name, split in card["splits"].items():
            echo(f"    {name}: {_split_size(split)}")


def _split_size(split: Any) -> str:
    """`740 clips, 3,700 frames`, as far as known."""
    known = [pluralize(split[key], key.removesuffix("s")) for key in ("clips", "frames") if split[key] is not None]
    return ", ".join(known) or "size not published"


def _print_studies(studies: Any) -> None:
    echo("Studies (openavs ablate BENCHMARK --study NAME --root DIR)")
    for study in studies:
        echo(f"\n  {study['name']:12} {study['title']}")
        echo(f"    variants: {', '.join(study['variants'])}")
        if study["mirrors"]:
            echo(f"    after {study['mirrors']}")


def show(
    name: Annotated[
        str, typer.Argument(help="Name of a recipe, prompt or backend; or a recipe file.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Recipe overrides; with them the resolved recipe is printed.", show_default=False),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Print a recipe, a prompt or a backend."""
    found = _recipe(name, overrides or []) or _prompt(name) or _backend(name)
    if found is None:
        raise _unknown(name)
    if as_json:
        print_json({key: value for key, value in found.items() if key != "text"})
    else:
        echo(found["text"].rstrip("\n"))


def _recipe(name: str, overrides: list[str]) -> dict[str, Any] | None:
    """The file as written, with its comments; with overrides, the complete resolved recipe."""
    from openavs.config import resources
    from openavs.config.recipe import load_recipe

    is_file = name.endswith((".yaml", ".yml"))
    if not (is_file or overrides or name in resources.names("pipelines")):
        return None
    recipe = load_recipe(name, overrides)
    path = resources.find("pipelines", name)
    text = recipe.to_yaml() if overrides else path.read_text(encoding="utf-8")
    return {"kind": "recipe", "name": recipe.name, "path": str(path), "recipe": recipe.to_dict(), "text": text}


def _prompt(name: str) -> dict[str, Any] | None:
    from openavs.config import resources

    if not (name.endswith(".txt") or name in resources.names("prompts")):
        return None
    path = resources.find("prompts", name)
    text = path.read_text(encoding="utf-8")
    return {"kind": "prompt", "name": Path(path).stem, "path": str(path), "prompt": text, "text": text}


def _backend(name: str) -> dict[str, Any] | None:
    """The backend's documentation and options; importing it may load torch."""
    from openavs.config.options import options_of
    from openavs.models.compile import OPTION, can_compile
    from openavs.registry import STAGES, Registry

    for stage in STAGES:
        registry = Registry(stage)
        if name not in registry.names():
            continue
        entry, cls = registry.entry(name), registry.load(name)
        parameters, _ = options_of(cls)
        if can_compile(name):  # an option of all compilable backends, handled outside of their classes
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters[OPTION] = inspect.Parameter(OPTION, kind, default=False, annotation="bool | str")
        options = {key: None if p.default is inspect.Parameter.empty else p.default for key, p in parameters.items()}
        shown = "\n".join(f"  {_option(parameter)}" for parameter in parameters.values()) or "  none"
        about = inspect.getdoc(cls) or entry.summary
        text = f"{stage} {name} ({entry.target})\n\n{about}\n\nOptions:\n{shown}"
        return {
            "kind": "backend",
            "name": name,
            "stage": stage,
            "target": entry.target,
            "summary": entry.summary,
            "options": {key: value if _is_plain(value) else str(value) for key, value in options.items()},
            "text": text,
        }
    return None


def _option(parameter: inspect.Parameter) -> str:
    """Return the name, type and default of an option; postponed annotations are strings, printed without quotes."""
    default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
    kind = parameter.annotation
    if not isinstance(kind, str):
        kind = inspect.formatannotation(kind)
    return f"{parameter.name}: {kind}{default}"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _unknown(name: str) -> Exception:
    from openavs.config import resources
    from openavs.registry import STAGES, Registry

    prompts = resources.names("prompts")
    known = {*resources.names("pipelines"), *prompts}
    known.update(backend for stage in STAGES for backend in Registry(stage).names())
    otherwise = (
        f"'openavs list' lists recipes, 'openavs list backends' backends; the prompts are {', '.join(sorted(prompts))}"
    )
    return InputError(f"unknown recipe, prompt or backend {name!r}; {did_you_mean(name, known, otherwise)}")
