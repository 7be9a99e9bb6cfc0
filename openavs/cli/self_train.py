"""`openavs self-train`: trains a student on the pseudo-labels of a recipe and evaluates both."""

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
    BenchmarkOption,
    MaxStepsOption,
    StudentArgument,
    TrainDeviceOption,
    TrainRecipeOption,
    TrainRootOption,
    open_splits,
    require_accelerate,
    select_recipe,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


def self_train(
    arguments: StudentArgument,
    root: TrainRootOption,
    benchmark: BenchmarkOption,
    out: Annotated[Path, typer.Option(help="Output folder for labels, students and evaluations.", show_default=False)],
    pipeline: PipelineOption = None,
    recipe: TrainRecipeOption = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Extension: each student labels the clips for the next round.")
    ] = 1,
    min_score: Annotated[
        float,
        typer.Option(min=0, max=1, help="Extension: minimum mean score of a clip, by the teacher."),
    ] = 0.0,
    drop_empty: Annotated[
        bool, typer.Option("--drop-empty", help="Extension: exclude clips without any mask.")
    ] = False,
    weighted: Annotated[bool, typer.Option("--weighted", help="Extension: weight frames by confidence.")] = False,
    truth: Annotated[
        bool, typer.Option("--truth", help="Also train the same student on the ground truth, for comparison.")
    ] = False,
    max_steps: MaxStepsOption = None,
    device: TrainDeviceOption = "auto",
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Label the training split with a recipe, train a student on it, and evaluate both on the test split."""
    from openavs.cli.progress import progress_bar
    from openavs.config.recipe import load_recipe
    from openavs.evaluation.benchmark import load_benchmark, open_dataset

    configure_logging(quiet=quiet, verbose=verbose)
    require_accelerate()
    chosen = select_recipe(arguments, recipe, max_steps=max_steps, offline=offline, quiet=quiet)
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
    """Prints one line for the teacher and for each student."""
    for name, figures in report["figures"].items():
        values = ", ".join(f"{key} {100 * value:.2f}" for key, value in figures.items() if value is not None)
        echo(f"{name}: {values}")
    echo(f"last student: --pipeline {report['pipeline']}")
