"""Self-training (OpenAVS-ST): a pipeline labels clips that have no masks, and a student learns from what it says.

The paper swaps the labels and changes nothing else: no filter, no weights, one round. Three options are ours: leaving
out clips of which the teacher is unsure, weighing frames by how sure it is, and further rounds in which the student
labels the clips for the next student.

    OUT/round-1/labels/     the teacher's results and masks of the training split
    OUT/round-1/student/    the student (see `checkpoint.py`)
    OUT/round-1/test/       its evaluation; OUT/teacher/ is the pipeline's own
    OUT/truth/, truth-test/ the same student on ground truth, where asked for
    OUT/self_training.json  the figures side by side

Running the same again goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openavs.config.recipe import STUDENT, Recipe, load_recipe
from openavs.errors import InputError
from openavs.evaluation.benchmark import BenchmarkConfig
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.evaluator import evaluate, recipe_predictor
from openavs.evaluation.predictor import Predictor, folder_names, predict
from openavs.pipeline.context import Progress
from openavs.results.serialization import json_bytes, read_result
from openavs.structures.types import ClipResult
from openavs.training.config import TrainingRecipe, training_recipe
from openavs.training.data.labels import CONFIDENCE, LEFT_OUT
from openavs.training.inference import student_predictor
from openavs.training.trainer import train
from openavs.utils.fs import atomic_write
from openavs.utils.text import pluralize

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelfTrainingConfig:
    """What is ours and off by default: `min_score` leaves out clips whose mean confidence is lower, `drop_empty` those
    in which nothing was found, `weighted` weighs frames by their confidence, `rounds` above 1 teach again; `truth`
    trains the same student on the ground truth, too, for comparison."""

    min_score: float = 0.0
    drop_empty: bool = False
    weighted: bool = False
    rounds: int = 1
    truth: bool = False


@dataclass(frozen=True)
class Splits:
    """The benchmark and its parts: the training masks are never looked at, except by `truth`."""

    card: BenchmarkConfig
    train: Dataset
    val: Dataset | None
    test: Dataset


def self_train(
    recipe: TrainingRecipe,
    teacher: Recipe,
    splits: Splits,
    out: Path,
    choices: SelfTrainingConfig,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Runs all of it and returns what self_training.json holds.

    Raises:
        InputError: a clip that cannot be labeled or evaluated, or nothing that is left to train on.
    """
    out.mkdir(parents=True, exist_ok=True)
    if choices.weighted:
        recipe = training_recipe({**recipe.to_dict(), "labels": {**recipe.labels.model_dump(), "weighted": True}})
    figures: dict[str, Any] = {}
    labeller = recipe_predictor(teacher, splits.train, splits.card)
    itself = recipe_predictor(teacher, splits.test, splits.card)
    figures["teacher"] = _scored(itself, splits.test, out / "teacher", progress)
    kept = []
    for number in range(1, choices.rounds + 1):
        folder = out / f"round-{number}"
        kept.append(label(labeller, splits.train, folder / "labels", choices, progress))
        places = folder / "student", folder / "test", folder / "labels"
        figures[f"round {number}"] = train_and_score(recipe, splits, *places, device, progress)
        labeller = student_predictor(_recipe_of(folder / "student", device), splits.train)
    if choices.truth:
        figures["truth"] = train_and_score(recipe, splits, out / "truth", out / "truth-test", None, device, progress)
    report = {
        "benchmark": splits.test.benchmark,
        "teacher": teacher.name,
        "student": recipe.student,
        "clips": len(splits.train.clips),
        "kept": kept,
        "figures": figures,
        "pipeline": f"student:{out / f'round-{choices.rounds}' / 'student'}",
    }
    atomic_write(out / "self_training.json", json_bytes(report))
    return report


def label(
    system: Predictor,
    dataset: Dataset,
    out: Path,
    choices: SelfTrainingConfig,
    progress: Callable[[str, int, int], None] | None,
) -> int:
    """Labels the clips of a split, notes how sure the teacher is, and how many clips are kept.

    Raises:
        InputError: a clip that cannot be labeled, or none that is kept.
    """
    names = folder_names(dataset.clips)
    failed = predict(system, dataset, out, names=names, progress=progress).failed
    if failed:
        clip, reason = next(iter(failed.items()))
        raise InputError(f"{pluralize(len(failed), 'clip')} could not be labeled, such as {clip}: {reason}")
    results = {clip.id: read_result(out, names[clip.id]) for clip in dataset.clips}
    confidence = confidences(results)
    left_out = [clip.id for clip in dataset.clips if not _kept(results[clip.id], confidence[clip.id], choices)]
    if len(left_out) == len(dataset.clips):
        raise InputError(f"the filter leaves none of the {len(left_out)} clips; lower --min-score or keep empty ones")
    atomic_write(out / CONFIDENCE, json_bytes(confidence))
    atomic_write(out / LEFT_OUT, json_bytes(left_out))
    return len(dataset.clips) - len(left_out)


def confidences(results: Mapping[str, ClipResult]) -> dict[str, list[float]]:
    """How sure a teacher is of each frame of its clips: the mean score of the frame's segments.

    A frame in which nothing was found has no score, and scores of another teacher have another scale; so it counts as
    much as, on average, one in which something was found.
    """
    scores = {clip: [_mean(s.score for s in frame.segments) for frame in own.frames] for clip, own in results.items()}
    usual = _mean(score for own in scores.values() for score in own if score is not None)
    unscored = 1.0 if usual is None else usual
    return {clip: [unscored if score is None else score for score in own] for clip, own in scores.items()}


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def _kept(result: ClipResult, confidence: Sequence[float], choices: SelfTrainingConfig) -> bool:
    if choices.drop_empty and not any(frame.segments for frame in result.frames):
        return False
    return sum(confidence) / len(confidence) >= choices.min_score


def train_and_score(
    recipe: TrainingRecipe,
    splits: Splits,
    folder: Path,
    test: Path,
    labels: Path | None,
    device: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """Trains a student into `folder`, on `labels` or on the ground truth, and evaluates it into `test`; what is there
    is gone on with. Returns the official figures."""
    train(recipe, splits.train, splits.val, folder, labels=labels, resume=True, device=device, progress=progress)
    return _scored(student_predictor(_recipe_of(folder, device), splits.test), splits.test, test, progress)


def _recipe_of(folder: Path, device: str) -> Recipe:
    return load_recipe(f"{STUDENT}{folder}", [f"device={device}"])


def _scored(system: Predictor, dataset: Dataset, out: Path, progress: Progress | None) -> dict[str, Any]:
    done = evaluate(system, dataset, out, progress=progress)
    if done.report is None:
        clip, reason = next(iter(done.failed.items()))
        raise InputError(f"{pluralize(len(done.failed), 'clip')} could not be evaluated, such as {clip}: {reason}")
    figures: dict[str, Any] = json.loads(json.dumps(done.report["figures"]["official"]))
    return figures
