"""`openavs show NAME`: prints one recipe, prompt or backend."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from openavs.cli.options import JsonOption
from openavs.cli.output import echo, print_json
from openavs.errors import InputError
from openavs.utils.text import did_you_mean


def show(
    name: Annotated[
        str, typer.Argument(help="Name of a recipe, prompt or backend; or a recipe file.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Recipe overrides; with them the resolved recipe is printed.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
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
    from openavs.models.compile import OPTION, can_compile
    from openavs.registry import STAGES, Registry

    for stage in STAGES:
        registry = Registry(stage)
        if name not in registry.names():
            continue
        entry, cls = registry.entry(name), registry.load(name)
        parameters = dict(inspect.signature(cls).parameters)
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
    otherwise = f"'openavs list' lists recipes and backends; the prompts are {', '.join(sorted(prompts))}"
    return InputError(f"unknown recipe, prompt or backend {name!r}; {did_you_mean(name, known, otherwise)}")
