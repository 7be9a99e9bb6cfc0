"""`openavs train` and `openavs self-train`: students from ground truth or from a recipe's pseudo-labels.

On several GPUs: `accelerate launch -m openavs train`.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli import options as opt
from openavs.cli.options import default_pipeline, recipe_overrides, split_overrides
from openavs.cli.output import configure_logging, echo, log_line, print_result
from openavs.errors import InputError
from openavs.utils.text import pluralize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from openavs.evaluation.datasets.base import Dataset
    from openavs.training.config import TrainingRecipe
    from openavs.training.trainer import TrainingResult

StudentArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="STUDENT [KEY=VALUE...]",
        help="tpavi, avsegformer, sama-avs, ov-avss, a plug-in or ./file.py:Class; overrides like optimizer.lr=3e-4.",
        show_default=False,
    ),
]
TrainRootOption = Annotated[
    Path, typer.Option(help="Folder of the benchmark, with its metadata CSV.", show_default=False)
]
BenchmarkOption = Annotated[str, typer.Option(help="s4, ms3, avss, ov or a benchmark's YAML file.", show_default=False)]
TrainRecipeOption = Annotated[
    str | None,
    typer.Option(
        help="Training recipe of pipelines/students/ or a YAML file. Default: STUDENT-tiny, for synthetic clips.",
        show_default=False,
    ),
]
MaxStepsOption = Annotated[int | None, typer.Option(min=1, help="Maximum number of steps.")]
TrainDeviceOption = Annotated[str, typer.Option(help="auto or cpu; accelerate launch selects the GPUs.")]


def train(
    arguments: StudentArgument,
    root: TrainRootOption,
    benchmark: BenchmarkOption,
    out: Annotated[Path, typer.Option(help="Output folder of the student.", show_default=False)],
    recipe: TrainRecipeOption = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Pseudo-labels instead of ground truth: a folder of predictions, or of 'label' or 'evaluate'.",
            show_default=False,
        ),
    ] = None,
    max_steps: MaxStepsOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the training in the folder.")] = False,
    device: TrainDeviceOption = "auto",
    offline: opt.Offline = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Train a student on a benchmark's training split, or on pseudo-labels of it."""
    from openavs.cli.output import progress_bar

    is_main = os.environ.get("RANK", "0") == "0"  # of the processes of accelerate launch; only this one prints
    quiet, as_json = quiet or not is_main, as_json and is_main
    configure_logging(quiet=quiet, verbose=verbose)
    require_accelerate()
    chosen = select_recipe(arguments, recipe, max_steps=max_steps, offline=offline, quiet=quiet)
    train_set, val_set = open_splits(chosen, benchmark, root)
    if resume and not (out / "train.json").is_file():
        log_line(f"openavs: {out} has no checkpoint to resume; starting from the beginning", quiet=quiet)
    from openavs.training.trainer import train as run_training

    with progress_bar(chosen.student, quiet) as progress:
        done = run_training(
            chosen, train_set, val_set, out, labels=labels, resume=resume, device=device, progress=progress
        )
    print_result(_result(done), partial(echo, _sentence(done)), as_json=as_json, quiet=quiet)


def require_accelerate() -> None:
    """Check that the extra `train` is installed.

    Raises:
        InputError: it is not.
    """
    from importlib.util import find_spec

    if find_spec("accelerate") is None:
        raise InputError('training needs the package accelerate: pip install "openavs[train]"')


def select_recipe(
    arguments: list[str], recipe: str | None, *, max_steps: int | None, offline: bool, quiet: bool
) -> TrainingRecipe:
    """Load the training recipe; by default the small recipe of the student.

    Raises:
        InputError: there is not exactly one student, or the recipe does not exist or is for another student.
    """
    from openavs.training.config import load_training_recipe

    students, overrides = split_overrides(arguments)
    if len(students) != 1:
        raise InputError("name one student, such as tpavi or ov-avss")
    overrides += [f"max_steps={max_steps}"] if max_steps is not None else []
    overrides += ["offline=true"] if offline else []
    if recipe is None:
        recipe, defaults = small_recipe(students[0])
        overrides = [*defaults, *overrides]
        log_line(
            f"openavs: using the training recipe {recipe}, a small one for synthetic clips; "
            "for real data see pipelines/students/ and --recipe",
            quiet=quiet,
        )
    chosen = load_training_recipe(recipe, overrides)
    if chosen.student != students[0]:
        raise InputError(
            f"the training recipe {chosen.name!r} is for {chosen.student}, not {students[0]}; give another --recipe"
        )
    return chosen


def small_recipe(student: str) -> tuple[str, list[str]]:
    """Return the small recipe of a student, with overrides.

    Plug-ins use the recipe of TPAVI without the options of its model.

    Raises:
        InputError: the student does not exist.
    """
    from openavs.training.base import student_class
    from openavs.training.config import training_recipe_names

    if (own := f"{student}-tiny") in training_recipe_names():
        return own, []
    student_class(student)
    return "tpavi-tiny", [f"student={student}", "model={}", "init={}"]


def open_splits(recipe: TrainingRecipe, benchmark: str, root: Path) -> tuple[Dataset, Dataset | None]:
    """Open the training and the validation split (None if the data has none).

    Raises:
        InputError: a benchmark of tracks.
    """
    from openavs.evaluation.benchmark import open_dataset
    from openavs.evaluation.datasets.tables import MissingSplitError

    train_set = open_dataset(benchmark, root, "train")
    if train_set.task == "instances":
        raise InputError(f"students learn masks, and {train_set.benchmark} has tracks; name a benchmark such as ov")
    try:
        return train_set, open_dataset(benchmark, root, recipe.validation.split)
    except MissingSplitError as error:
        log_line(f"openavs: no validation, so the last student is used as the best one: {error}")
        return train_set, None


def _result(done: TrainingResult) -> dict[str, Any]:
    best = None if done.best is None else {"figure": done.figure, "value": done.best, "step": done.best_step}
    return {
        "out": str(done.out),
        "steps": done.steps,
        "person": done.person,
        "best": best,
        "pipeline": f"student:{done.out}",
    }


def _sentence(done: TrainingResult) -> str:

    person = f", {pluralize(done.person, 'clip')} of a person" if done.person else ""
    best = (
        person + f", best {done.figure} {100 * done.best:.2f} at step {done.best_step}"
        if done.best is not None
        else person
    )
    return f"{pluralize(done.steps, 'step')}{best}; evaluate it with --pipeline student:{done.out}"


def self_train(
    arguments: StudentArgument,
    root: TrainRootOption,
    benchmark: BenchmarkOption,
    out: Annotated[Path, typer.Option(help="Output folder for labels, students and evaluations.", show_default=False)],
    pipeline: opt.Pipeline = None,
    recipe: TrainRecipeOption = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Extension: each student labels the clips for the next round.")
    ] = 1,
    min_score: Annotated[
        float,
        typer.Option(min=0, max=1, help="Extension: minimum mean score of a clip, by the teacher."),
    ] = 0.0,
    min_agreement: Annotated[
        float,
        typer.Option(min=0, max=1, help="Extension: minimum share of a clip's prompts that the detector found."),
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
    offline: opt.Offline = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Label the training split with a recipe, train a student on it, and evaluate both on the test split."""
    from openavs.cli.output import progress_bar
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
        min_score=min_score,
        min_agreement=min_agreement,
        drop_empty=drop_empty,
        weighted=weighted,
        rounds=rounds,
        truth=truth,
    )
    with progress_bar("self-training", quiet) as progress:
        report = run(chosen, teacher, splits, out, choices, device=device, progress=progress)
    print_result({**report, "out": str(out)}, partial(_print, report), as_json=as_json, quiet=quiet)


def _print(report: Mapping[str, Any]) -> None:
    """Prints one line for the teacher and for each student."""
    for name, figures in report["figures"].items():
        values = ", ".join(f"{key} {100 * value:.2f}" for key, value in figures.items() if value is not None)
        echo(f"{name}: {values}")
    if report["person"]:
        of = pluralize(report["person"], "training clip")
        echo(f"{of} corrected or reviewed by a person, weight {report['person_weight']:g}")
    if gain := report["corrections_gain"]:
        low, high = (100 * end for end in gain["interval"])
        echo(f"last student with them minus without: {100 * gain['mean']:+.2f} ({low:+.2f} to {high:+.2f})")
    echo(f"last student: --pipeline {report['pipeline']}")
