"""`openavs train`: a student on ground truth or on pseudo-labels (on many GPUs by `accelerate launch -m openavs`)."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli.options import JsonOption, OfflineOption, QuietOption, VerboseOption, split_overrides
from openavs.cli.output import configure_logging, echo, log_line, print_result

if TYPE_CHECKING:
    from openavs.evaluation.datasets.base import Dataset
    from openavs.training.config import TrainingRecipe
    from openavs.training.loop import TrainingResult

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="STUDENT [KEY=VALUE...]",
        help="tpavi, ov-avss, a plug-in or ./file.py:Class; and overrides such as optimiser.lr=3e-4.",
        show_default=False,
    ),
]
Root = Annotated[Path, typer.Option(help="The benchmark's folder, which holds its metadata csv.", show_default=False)]
Benchmark = Annotated[str, typer.Option(help="s4, ms3, avss, ov or a card's YAML file.", show_default=False)]
Out = Annotated[Path, typer.Option(help="The folder of the trained student.", show_default=False)]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        help="A training recipe of pipelines/students/ or a YAML file; default: STUDENT-tiny, for the synthetic world.",
        show_default=False,
    ),
]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the training in the folder.")]
DeviceKind = Annotated[str, typer.Option(help="auto or cpu; which GPUs is a matter of accelerate launch.")]


def train(
    words: Words,
    root: Root,
    benchmark: Benchmark,
    out: Out,
    recipe: RecipeOption = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Pseudo-labels in place of the ground truth: a folder of predictions, or of 'label' or 'evaluate'.",
            show_default=False,
        ),
    ] = None,
    max_steps: MaxSteps = None,
    resume: Resume = False,
    device: DeviceKind = "auto",
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a student on a benchmark's training split, or on pseudo-labels of it."""
    from openavs.cli.work import progress_bar

    first = os.environ.get("RANK", "0") == "0"  # of the processes that accelerate launch has started
    quiet, as_json = quiet or not first, as_json and first
    configure_logging(quiet=quiet, verbose=verbose)
    need_accelerate()
    chosen = chosen_recipe(words, recipe, max_steps=max_steps, offline=offline, quiet=quiet)
    train_set, val_set = open_splits(chosen, benchmark, root)
    if resume and not (out / "train.json").is_file():
        log_line(f"openavs: {out} holds no training to go on with; one begins", quiet=quiet)
    from openavs.training.trainer import train as run_training

    with progress_bar(chosen.student, quiet) as progress:
        done = run_training(
            chosen, train_set, val_set, out, labels=labels, resume=resume, device=device, progress=progress
        )
    print_result(answer(done), partial(echo, sentence(done)), as_json=as_json, quiet=quiet)


def need_accelerate() -> None:
    """InputError if the extra is not installed."""
    from importlib.util import find_spec

    from openavs.errors import InputError

    if find_spec("accelerate") is None:
        raise InputError('training needs the package accelerate: pip install "openavs[train]"')


def chosen_recipe(
    words: list[str], recipe: str | None, *, max_steps: int | None, offline: bool, quiet: bool
) -> TrainingRecipe:
    """The training recipe for what was typed; without `--recipe` the small one of the student, which is said.

    Raises:
        InputError: no student or several, no such recipe, or one of another student.
    """
    from openavs.errors import InputError
    from openavs.training.config import load_training_recipe

    named, overrides = split_overrides(words)
    if len(named) != 1:
        raise InputError("name one student, such as tpavi or ov-avss")
    overrides += [f"max_steps={max_steps}"] if max_steps is not None else []
    overrides += ["offline=true"] if offline else []
    if recipe is None:
        recipe, own = small_recipe(named[0])
        overrides = [*own, *overrides]
        log_line(
            f"openavs: training with the recipe {recipe}, which is small and for the synthetic world; "
            "for real data see pipelines/students/ and --recipe",
            quiet=quiet,
        )
    chosen = load_training_recipe(recipe, overrides)
    if chosen.student != named[0]:
        raise InputError(f"the training recipe {chosen.name!r} is for {chosen.student}, not {named[0]}; give another")
    return chosen


def small_recipe(student: str) -> tuple[str, list[str]]:
    """The small recipe of a student; one of somebody else's takes TPAVI's, without what is the model's.

    Raises:
        InputError: there is no such student.
    """
    from openavs.training.config import training_recipe_names
    from openavs.training.registry import student_class

    if (own := f"{student}-tiny") in training_recipe_names():
        return own, []
    student_class(student)
    return "tpavi-tiny", [f"student={student}", "model={}", "init={}"]


def open_splits(recipe: TrainingRecipe, benchmark: str, root: Path) -> tuple[Dataset, Dataset | None]:
    """The training split and the one to validate on, None where the data has none (which is said)."""
    from openavs.evaluation.benchmark import open_dataset
    from openavs.evaluation.datasets.tables import MissingSplitError

    train_set = open_dataset(benchmark, root, "train")
    try:
        return train_set, open_dataset(benchmark, root, recipe.validation.split)
    except MissingSplitError as problem:
        log_line(f"openavs: nothing is validated, so the last student counts as the best: {problem}")
        return train_set, None


def answer(done: TrainingResult) -> dict[str, Any]:
    """What --json prints."""
    best = None if done.best is None else {"figure": done.figure, "value": done.best, "step": done.best_step}
    return {"out": str(done.out), "steps": done.steps, "best": best, "pipeline": f"student:{done.out}"}


def sentence(done: TrainingResult) -> str:
    """What is printed."""
    from openavs.utils.text import pluralize

    best = f", best {done.figure} {100 * done.best:.2f} at step {done.best_step}" if done.best is not None else ""
    return f"{pluralize(done.steps, 'step')}{best}; evaluate it with --pipeline student:{done.out}"
