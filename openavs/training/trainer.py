"""Trains a student: the same code on one device and on many (`accelerate launch`), resumed exactly after a kill."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from openavs.errors import InputError
from openavs.evaluation.datasets.base import Dataset
from openavs.pipeline.context import Progress
from openavs.results.provenance import provenance
from openavs.training.base import Student
from openavs.training.checkpoint import check_resumable
from openavs.training.config import TrainingRecipe
from openavs.training.data.dataset import LabelSource, TrainingDataset, check_split
from openavs.training.data.labels import GroundTruthLabels, PseudoLabels
from openavs.training.loop import Trainer, TrainingResult
from openavs.training.registry import student_class

log = logging.getLogger(__name__)


def train(
    recipe: TrainingRecipe,
    train_set: Dataset,
    val_set: Dataset | None,
    out: Path,
    *,
    labels: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains a student as a recipe says and leaves it in `out` (see `checkpoint.py`).

    Args:
        train_set, val_set: splits of one benchmark; without a validation split the last student is the best.
        labels: a folder of pseudo-labels in place of the ground truth of `train_set`.
        resume: go on with the training in `out`; if there is none yet, begin.
        device: `auto` or `cpu`; which GPUs are used is accelerate's matter.

    Raises:
        InputError: data, recipe or folder that cannot be used. TrainingError: the loss is not finite.
    """
    check_device(device)
    if recipe.tensorboard and not any(map(find_spec, ("tensorboard", "tensorboardX"))):
        raise InputError("'tensorboard: true' needs the package tensorboard: pip install tensorboard")
    accelerator = Accelerator(
        mixed_precision=recipe.precision,
        cpu=device == "cpu",
        log_with="tensorboard" if recipe.tensorboard else None,
        project_dir=str(out) if recipe.tensorboard else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],  # the others wait while one validates
    )
    check_split(recipe.batch, recipe.accumulate, accelerator.num_processes)
    if val_set is not None and recipe.validation.clips:
        val_set = replace(val_set, clips=val_set.clips[: recipe.validation.clips])
    source: LabelSource = GroundTruthLabels(train_set)
    if labels is not None:
        source = PseudoLabels(train_set, labels, recipe.labels.frames, recipe.labels.weighted)
    clips = tuple(clip for clip in train_set.clips if source.has(clip))
    if left := len(train_set.clips) - len(clips):
        log.warning("%d of %d clips have no label and are left out", left, len(train_set.clips))
    description = _describe(recipe, train_set, val_set, labels, len(clips))
    check_resumable(out, description, resume)
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    student = make_student(recipe, train_set)
    run = Trainer(accelerator, recipe, student, out, len(clips), val_set, progress or (lambda what, done, total: None))
    run.begin(description, resume)
    heard = run.hear([*clips, *(val_set.clips if val_set else ())])
    classes = 2 if train_set.task == "binary" else len(train_set.classes)
    stream = TrainingDataset(clips, source, heard, student.view(training=True), classes, recipe.seed)
    return run.go(stream, heard)


def make_student(recipe: TrainingRecipe, dataset: Dataset) -> Student:
    """The recipe's student for a benchmark, with its random weights drawn from the seed and its parts initialised."""
    cls = student_class(recipe.student)
    torch.manual_seed(recipe.seed)
    student = cls.build(cls.fitted(dict(recipe.model), dataset.task, dataset.classes))
    student.offline = recipe.offline
    student.check(dataset.task, dataset.classes)
    student.prepare(dataset.task)
    for part, ref in recipe.init.items():
        student.initialise(part, ref)
    return student


def check_device(device: str) -> None:
    """Accelerate chooses among GPUs; here it is only whether one may be used."""
    if device not in ("auto", "cpu"):
        raise InputError(f"a training takes --device auto or cpu, not {device!r}; choose GPUs by accelerate launch")


def _describe(
    recipe: TrainingRecipe, train_set: Dataset, val_set: Dataset | None, labels: Path | None, clips: int
) -> dict[str, Any]:
    data = {"benchmark": train_set.benchmark, "split": train_set.split, "clips": clips}
    data |= {"labels": None if labels is None else str(labels.absolute()), "validation": val_set and val_set.split}
    return {"recipe": recipe.to_dict(), "data": data, **provenance()}
