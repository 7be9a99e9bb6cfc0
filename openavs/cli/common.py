"""What the commands share: their common options, JSON on stdout, messages and logs on stderr."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.utils.logs import TerminalFormatter
from openavs.utils.text import printable

if TYPE_CHECKING:
    from openavs.config.recipe import Recipe

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done and why.")]
Pipeline = Annotated[
    str | None,
    typer.Option(
        "--pipeline",
        "-p",
        help="A recipe: its name (see [bold]openavs list[/]) or a YAML file; or student:DIR. "
        "Default: openavs with a GPU, openavs-cpu without.",
        show_default=False,
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps; default: the recipe's.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16; default: the recipe's.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Frames that go through the models at once.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Stop after this many items.")]
Lock = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Use the models at the commits in this file; those not in it are added to it."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Use only what is on this disk; never the network.")]


def recipe_overrides(
    overrides: list[str] | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    offline: bool = False,
) -> list[str]:
    """The shared options as `key=value` overrides of a recipe, after those given as such."""
    shared = {"device": device, "dtype": dtype, "batch.frames": batch_size, "offline": "true" if offline else None}
    return [*(overrides or ()), *(f"{key}={value}" for key, value in shared.items() if value is not None)]


def default_pipeline(overrides: list[str], *, quiet: bool) -> str:
    """The name of the default recipe, which is said on stderr."""
    from openavs.config.recipe import default_recipe

    name = default_recipe(overrides)
    where = "with a GPU" if name == "openavs" else "without a GPU"
    log_line(f"openavs: the recipe is {name}, the default {where}; --pipeline takes another", quiet=quiet)
    return name


def is_override(word: str) -> bool:
    """`filtering.box_threshold=0.3`, unless there is a file of that name."""
    key, equals, _ = word.partition("=")
    return bool(equals) and key.replace(".", "").replace("_", "").isalnum() and not os.path.exists(word)


def split_words(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """What was named, and the `key=value` overrides that stood among it."""
    named: list[str] = []
    overrides: list[str] = []
    for word in words:
        (overrides if is_override(word) else named).append(word)
    return named, overrides


def refuse_bare_keys(named: Iterable[str]) -> None:
    """Raises InputError for a recipe's key without a value, such as `filtering.box_threshold`, among the inputs."""
    from openavs.config.recipe import is_recipe_key
    from openavs.errors import InputError

    for name in named:
        if is_recipe_key(name) and not os.path.exists(name):
            raise InputError(f"{name} is a key of the recipe and has no value; write {name}=VALUE without spaces")


def command_line() -> str:
    """What was typed, for a report."""
    return shlex.join(["openavs", *sys.argv[1:]])


def print_json(data: Any) -> None:
    """One JSON object on stdout, in ASCII: every terminal takes it, whatever a file name holds.

    NaN and infinities, which JSON does not have, are refused.
    """
    print(json.dumps(data, indent=2, allow_nan=False))


def print_answer(answer: Any, show: Callable[[], object], *, as_json: bool, quiet: bool) -> None:
    """What a command has to say at its end: the answer as JSON, else what `show` prints, unless it is to be quiet."""
    if as_json:
        print_json(answer)
    elif not quiet:
        show()


def log_line(text: str, *, quiet: bool = False) -> None:
    """Prints a message of one line on stderr, with control characters escaped."""
    if not quiet:
        print(printable(text).replace("\n", "\\n"), file=sys.stderr, flush=True)


def echo(text: str = "") -> None:
    """Prints a part of the answer on stdout, with control characters escaped."""
    print(printable(text), flush=True)


def warn_tiny_models(recipe: Recipe) -> None:
    """Warns on stderr that the embedded models, and students trained with them, are not for real videos."""
    from openavs.models.catalog import is_only_synthetic

    models: dict[str, Any] = dict.fromkeys(recipe.models().values())
    if recipe.student is not None:
        from openavs.training.io import read_student

        models[recipe.student.model] = {"facts": read_student(recipe.student.model, recipe.offline).facts}
    if is_only_synthetic(models):
        log_line("openavs: these models know only the synthetic world; for real videos see 'openavs list recipes'")


def set_up_logging(*, quiet: bool = False, verbose: bool = False) -> None:
    """Logs of openavs on stderr: warnings by default, everything with `-v`, only errors with `-q`."""
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TerminalFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("openavs").setLevel(level)
