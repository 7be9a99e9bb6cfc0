"""Self-training (OpenAVS-ST): a pipeline labels clips without masks, and a student is trained on these labels.

As in the paper only the labels change: no filter, no weights, one round. There are three additional options: filtering
clips by the teacher's confidence or by the agreement of its captioner with its detector, weighting frames by the
confidence, and further rounds in which the student labels the clips for the next student.

    OUT/teacher/            evaluation of the pipeline
    OUT/round-1/labels/     the teacher's results and masks of the training split
    OUT/round-1/student/    the student (see `checkpoint.py`); student-<digest>, test-<digest> after corrections
    OUT/round-1/test/       its evaluation
    OUT/truth/, truth-test/ the same student trained on the ground truth, if enabled
    OUT/self_training.json  all figures

A second call with the same arguments resumes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openavs.config.recipe import STUDENT, Recipe, load_recipe
from openavs.corrections.review import combined_digest, person_clips
from openavs.errors import InputError
from openavs.evaluation.benchmark import BenchmarkConfig
from openavs.evaluation.compare import compare, read_report
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.evaluator import evaluate, recipe_predictor
from openavs.evaluation.job_io import folder_names
from openavs.evaluation.predictor import Predictor, predict
from openavs.pipeline.context import Progress
from openavs.results.serialization import json_bytes, read_result
from openavs.structures.types import ClipResult
from openavs.training.config import TrainingRecipe, training_recipe
from openavs.training.inference import student_predictor
from openavs.training.labels import CONFIDENCE, LEFT_OUT
from openavs.training.trainer import train
from openavs.utils.fs import atomic_write
from openavs.utils.plugins import is_file_reference
from openavs.utils.serialization import parse_json
from openavs.utils.text import pluralize


@dataclass(frozen=True)
class SelfTrainingConfig:
    """Options of self-training; the defaults are the paper's.

    Attributes:
        min_score: minimum mean confidence of a clip.
        min_agreement: minimum agreement of a clip's captioner and detector, see `agreement`.
        drop_empty: exclude clips without any mask.
        weighted: weight frames by their confidence.
        rounds: number of rounds.
        truth: also train the same student on the ground truth, for comparison.
    """

    min_score: float = 0.0
    min_agreement: float = 0.0
    drop_empty: bool = False
    weighted: bool = False
    rounds: int = 1
    truth: bool = False


@dataclass(frozen=True)
class Splits:
    """A benchmark and its splits; the masks of `train` are used with `truth` only."""

    benchmark: BenchmarkConfig
    train: Dataset
    val: Dataset | None
    test: Dataset


def self_train(
    recipe: TrainingRecipe,
    teacher: Recipe,
    splits: Splits,
    out: Path,
    config: SelfTrainingConfig,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Label, train and evaluate; return the content of self_training.json.

    Args:
        recipe: the training recipe of the students.
        teacher: the recipe of the pipeline that labels the training split of the first round.
        splits: the splits for training, validation and evaluation.
        out: the output folder.
        config: the options.
        device: `auto` or `cpu`, see `train`.
        progress: progress callback.

    Raises:
        InputError: the student is a file, a clip cannot be labeled or evaluated, or the filters leave no clip.
    """
    if is_file_reference(recipe.student):  # before anything is labeled
        raise InputError(
            f"self-train loads the student {recipe.student!r} from its folder, which names no code; install the class "
            "as a plug-in (entry points 'openavs.training', see examples/student) and give that name"
        )
    out.mkdir(parents=True, exist_ok=True)
    if config.weighted:
        recipe = training_recipe({**recipe.to_dict(), "labels": {**recipe.labels.model_dump(), "weighted": True}})
    figures: dict[str, Any] = {}
    labeler = recipe_predictor(teacher, splits.train, splits.benchmark)
    predictor = recipe_predictor(teacher, splits.test, splits.benchmark)
    figures["teacher"] = _evaluate(predictor, splits.test, out / "teacher", progress)
    kept = []
    for number in range(1, config.rounds + 1):
        folder = out / f"round-{number}"
        kept.append(label(labeler, splits.train, folder / "labels", config, progress))
        names = folder_names(splits.train.clips)
        person = person_clips(folder / "labels", names.values())
        mark = f"-{combined_digest(person)}" if person else ""
        student = folder / f"student{mark}"
        folders = student, folder / f"test{mark}", folder / "labels"
        figures[f"round {number}"] = train_and_score(recipe, splits, *folders, device, progress)
        labeler = student_predictor(_student_recipe(student, device), splits.train)
    if config.truth:
        figures["truth"] = train_and_score(recipe, splits, out / "truth", out / "truth-test", None, device, progress)
    report = {
        "benchmark": splits.test.benchmark,
        "teacher": teacher.name,
        "student": recipe.student,
        "clips": len(splits.train.clips),
        "kept": kept,
        "person": len(person),
        "person_weight": recipe.labels.person_weight,
        "corrections_gain": _corrections_gain(folder, mark) if mark else None,
        "figures": figures,
        "pipeline": f"student:{student}",
    }
    atomic_write(out / "self_training.json", json_bytes(report))
    return report


def label(
    predictor: Predictor, dataset: Dataset, out: Path, config: SelfTrainingConfig, progress: Progress | None
) -> int:
    """Label the clips of a split, write their confidences and the excluded clips; return the number of kept clips.

    Raises:
        InputError: a clip cannot be labeled, or the filters leave no clip.
    """
    names = folder_names(dataset.clips)
    failed = predict(predictor, dataset, out, names=names, progress=progress).failed
    if failed:
        clip, reason = next(iter(failed.items()))
        raise InputError(f"{pluralize(len(failed), 'clip')} could not be labeled, such as {clip}: {reason}")
    results = {clip.id: read_result(out, names[clip.id]) for clip in dataset.clips}
    confidence = confidences(results)
    person = person_clips(out, names.values())  # truth
    unsure = (clip.id for clip in dataset.clips if names[clip.id] not in person)
    left_out = [clip for clip in unsure if not _is_kept(results[clip], confidence[clip], config)]
    if len(left_out) == len(dataset.clips):
        raise InputError(
            f"the filters exclude all {len(left_out)} clips; lower --min-score and --min-agreement or leave out "
            "--drop-empty"
        )
    atomic_write(out / CONFIDENCE, json_bytes(confidence))
    atomic_write(out / LEFT_OUT, json_bytes(left_out))
    return len(dataset.clips) - len(left_out)


def confidences(results: Mapping[str, ClipResult]) -> dict[str, list[float]]:
    """Return a teacher's confidence in each frame of each clip: the mean score of the frame's segments."""
    scores = {
        clip: [_mean(1.0 if s.author == "person" else s.score for s in frame.segments) for frame in own.frames]
        for clip, own in results.items()
    }
    mean = _mean(score for own in scores.values() for score in own if score is not None)
    # The scale of scores depends on the teacher, so frames without segments get the mean of the others.
    default = 1.0 if mean is None else mean
    return {clip: [default if score is None else score for score in own] for clip, own in scores.items()}


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def agreement(result: ClipResult) -> float:
    """Return the share of a clip's prompts, which come from its captions, that have a segment; 1 without prompts."""
    found = [
        any(segment.phrase == prompt.phrase for segment in frame.segments)
        for frame in result.frames
        for prompt in frame.prompts
    ]
    return sum(found) / len(found) if found else 1.0


def _is_kept(result: ClipResult, confidence: Sequence[float], config: SelfTrainingConfig) -> bool:
    if config.drop_empty and not any(frame.segments for frame in result.frames):
        return False
    if agreement(result) < config.min_agreement:
        return False
    return sum(confidence) / len(confidence) >= config.min_score


def train_and_score(
    recipe: TrainingRecipe,
    splits: Splits,
    folder: Path,
    test: Path,
    labels: Path | None,
    device: str,
    progress: Progress | None,
) -> dict[str, Any]:
    """Train and evaluate a student, or resume both; return the official figures.

    Args:
        recipe: the training recipe.
        splits: the splits for training, validation and evaluation.
        folder: the folder of the training.
        test: the folder of the evaluation.
        labels: a folder of pseudo-labels; None for the ground truth.
        device: `auto` or `cpu`, see `train`.
        progress: progress callback.

    Raises:
        InputError: the data cannot be used, or a clip cannot be evaluated.
        TrainingError: the loss is not finite.
    """
    train(recipe, splits.train, splits.val, folder, labels=labels, resume=True, device=device, progress=progress)
    predictor = student_predictor(_student_recipe(folder, device), splits.test)
    return _evaluate(predictor, splits.test, test, progress)


def _corrections_gain(folder: Path, mark: str) -> dict[str, Any] | None:
    """Return the score of a round's student of corrected labels minus that of the one before the corrections.

    None if there is no such student that was evaluated, or if it had another recipe.
    """
    tests, students = ([folder / name, folder / f"{name}{mark}"] for name in ("test", "student"))
    if not (tests[0] / "report.json").is_file():
        return None
    before, after = (parse_json((student / "train.json").read_bytes())["recipe"] for student in students)
    if before != after:
        return None
    score = compare(*map(read_report, tests))["score"]
    return {"mean": score["difference"], "interval": score["interval"]}


def _student_recipe(folder: Path, device: str) -> Recipe:
    return load_recipe(f"{STUDENT}{folder}", [f"device={device}"])


def _evaluate(predictor: Predictor, dataset: Dataset, out: Path, progress: Progress | None) -> dict[str, Any]:
    """Evaluate all clips and return the official figures."""
    evaluation = evaluate(predictor, dataset, out, progress=progress)
    if evaluation.report is None:
        clip, reason = next(iter(evaluation.failed.items()))
        raise InputError(
            f"{pluralize(len(evaluation.failed), 'clip')} could not be evaluated, such as {clip}: {reason}"
        )
    figures: dict[str, Any] = json.loads(json.dumps(evaluation.report["figures"]["official"]))
    return figures
