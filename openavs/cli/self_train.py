"""`openavs self-train`: a recipe labels the training clips, a student learns from its masks, both are evaluated."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli.options import (
    JsonOption,
    OfflineOption,
    PipelineOption,
    QuietOption,
    VerboseOption,
    default_pipeline,
    recipe_overrides,
)
from openavs.cli.output import configure_logging, echo, print_result
from openavs.cli.train import (
    Benchmark,
    DeviceKind,
    MaxSteps,
    RecipeOption,
    Root,
    Words,
    chosen_recipe,
    need_accelerate,
    open_splits,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def self_train(
    words: Words,
    root: Root,
    benchmark: Benchmark,
    out: Annotated[Path, typer.Option(help="The folder of labels, student and evaluations.", show_default=False)],
    pipeline: PipelineOption = None,
    recipe: RecipeOption = None,
    rounds: Annotated[int, typer.Option(min=1, help="Ours: above 1, students teach further students.")] = 1,
    min_score: Annotated[
        float,
        typer.Option(min=0, max=1, help="Ours: leave out clips whose mean score, as the teacher scores, is lower."),
    ] = 0.0,
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Ours: leave out clips in which nothing was found.")
    ] = False,
    weighted: Annotated[bool, typer.Option("--weighted", help="Ours: weigh frames by confidence.")] = False,
    truth: Annotated[
        bool, typer.Option("--truth", help="Train the same student on the ground truth, too, to compare.")
    ] = False,
    max_steps: MaxSteps = None,
    device: DeviceKind = "auto",
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Label the training split with a recipe, train a student on the labels, evaluate both on the test split."""
    from openavs.cli.work import progress_bar
    from openavs.config.recipe import load_recipe
    from openavs.evaluation.benchmark import load_benchmark, open_dataset

    configure_logging(quiet=quiet, verbose=verbose)
    need_accelerate()
    chosen = chosen_recipe(words, recipe, max_steps=max_steps, offline=offline, quiet=quiet)
    shared = recipe_overrides(device=None if device == "auto" else device, offline=offline)
    teacher = load_recipe(pipeline or default_pipeline(shared, quiet=quiet), shared)
    train_set, val_set = open_splits(chosen, benchmark, root)
    from openavs.training.self_training import SelfTrainingConfig, Splits, self_train as run

    splits = Splits(load_benchmark(benchmark), train_set, val_set, open_dataset(benchmark, root, "test"))
    choices = SelfTrainingConfig(
        min_score=min_score, drop_empty=drop_empty, weighted=weighted, rounds=rounds, truth=truth
    )
    with progress_bar("self-training", quiet) as progress:
        report = run(chosen, teacher, splits, out, choices, device=device, progress=progress)
    print_result({**report, "out": str(out)}, partial(_print, report), as_json=as_json, quiet=quiet)


def _print(report: Mapping[str, Any]) -> None:
    """One line for the teacher and each student."""
    for name, figures in report["figures"].items():
        shown = ", ".join(f"{key} {100 * value:.2f}" for key, value in figures.items() if value is not None)
        echo(f"{name}: {shown}")
    echo(f"the last student: --pipeline {report['pipeline']}")
