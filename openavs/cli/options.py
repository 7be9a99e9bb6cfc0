"""Options that several commands share, and the recipe overrides among their arguments."""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from openavs.cli.output import log_line
from openavs.errors import InputError


class ProtocolName(StrEnum):
    """Evaluation protocols."""

    official = "official"
    fixed = "fixed"


# ---------------------------------------------------------------------------------------------- output and logging

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every step with its reason.")]

# --------------------------------------------------------------------------------------------------------- recipes


def recipe_names(incomplete: str) -> list[str]:
    """Return the recipes whose names begin with a text, for the completion of a shell."""
    from openavs.config import resources

    return [name for name in resources.names("pipelines") if name.startswith(incomplete)]


Pipeline = Annotated[
    str | None,
    typer.Option(
        "--pipeline",
        "-p",
        help="Recipe: a name (see [bold]openavs list[/]), a YAML file or student:DIR. "
        "Default: the one for this machine.",
        show_default=False,
        autocompletion=recipe_names,
    ),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps. Default: from the recipe.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16. Default: from the recipe.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Frames per batch. Default: from the recipe.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Maximum number of clips.")]
Lock = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Load models at the commits in this lock file; missing models are added to it."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Use local files only; never access the network.")]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes; 1: this process. They share the CPU threads.")]
Cache = Annotated[
    bool,
    typer.Option("--cache/--no-cache", help="Reuse outputs of captioner, translator and reasoner."),
]
Out = Annotated[Path, typer.Option(help="Output folder. Running the command again resumes it.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete earlier results in the folder first.")]

# ------------------------------------------------------------------------------------------------------ benchmarks

Benchmark = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="BENCHMARK [KEY=VALUE...]",
        help="A benchmark such as s4 or its card's file; overrides such as filtering.box_threshold=0.3.",
        show_default=False,
    ),
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder of the benchmark, with its metadata CSV.", show_default=False)
]
Split = Annotated[str, typer.Option(help="Split of the benchmark.")]
Protocol = Annotated[
    ProtocolName,
    typer.Option(help="official: as the published code; fixed: independent of clip order, batches and absent classes."),
]
ClipsPerBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Clips per batch; official J and F of binary masks depend on it. Default: as published (4 for ref-avs).",
        show_default=False,
    ),
]
Negatives = Annotated[
    str | None,
    typer.Option(
        metavar="KIND,...",
        help="Also run every clip with other sounds (AVSBench-Robust): silence, noise, offscreen, room.",
    ),
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Score missing masks as empty instead of refusing.")
]


# ------------------------------------------------------------------------------------------------------- overrides


def recipe_overrides(
    overrides: list[str] | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
    offline: bool = False,
) -> list[str]:
    """Append the shared options to the overrides of a recipe, as `key=value`."""
    shared = {"device": device, "dtype": dtype, "batch.frames": batch_size, "offline": "true" if offline else None}
    return [*(overrides or ()), *(f"{key}={value}" for key, value in shared.items() if value is not None)]


def default_pipeline(overrides: list[str], *, quiet: bool) -> str:
    """Return the name of the default recipe and log it on stderr."""
    from openavs.pipeline.memory_estimate import choose_recipe

    choice = choose_recipe(overrides)
    log_line(
        f"openavs: recipe {choice.name}, the default for this machine ({choice.reason}); choose another with "
        "--pipeline ('openavs list recipes')",
        quiet=quiet,
    )
    return choice.name


def is_override(argument: str) -> bool:
    """Return whether an argument is `key=value` and not the name of an existing file."""
    key, equals, _ = argument.partition("=")
    return bool(equals) and key.replace(".", "").replace("_", "").isalnum() and not os.path.exists(argument)


def split_overrides(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split arguments into inputs and `key=value` overrides."""
    inputs: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        (overrides if is_override(argument) else inputs).append(argument)
    return inputs, overrides


def refuse_bare_keys(inputs: Iterable[str]) -> None:
    """Reject a recipe key without a value, such as `filtering.box_threshold`, among the inputs.

    Raises:
        InputError: an input is a key of the recipe and not a file.
    """
    from openavs.config.recipe import is_recipe_key

    for name in inputs:
        if is_recipe_key(name) and not os.path.exists(name):
            raise InputError(f"{name} is a recipe key without a value; write {name}=VALUE without spaces")
