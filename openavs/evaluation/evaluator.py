"""Runs a system over a split of a benchmark and scores it: predictions, report.json, report.html and per_clip.csv.

A clip that fails is named, and the other clips are run. Metrics over the other clips would not be those of the
benchmark, and leaving out hard clips must not improve a metric: nothing is scored then, unless `allow_missing` is
true. The clip then counts as empty, as in `score`. A report does not depend on interruptions: scoring the same
results again gives the same report.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from openavs.caching.build import StagedSchedule, build_pipeline
from openavs.caching.store import CachePlace
from openavs.config.recipe import Recipe, recipe_from_dict
from openavs.errors import InputError
from openavs.evaluation.benchmark import BenchmarkConfig
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.job_io import PredictionSink, folder_names
from openavs.evaluation.negatives import (
    FOLDER as NEGATIVES,
    TITLES,
    negative_split,
    negatives_report,
    score_negatives,
    write_pairs,
)
from openavs.evaluation.predictor import Failures, PredictionRun, Predictor, predict
from openavs.evaluation.report import write_benchmark_report
from openavs.evaluation.scorer import BenchmarkScores, ScoringOptions, score
from openavs.jobs.checkpoint import read_timings
from openavs.pipeline.pipeline import Pipeline, Progress
from openavs.results.serialization import is_corrected, json_bytes
from openavs.stages.vocabulary import plain_key
from openavs.utils.fs import atomic_write

if TYPE_CHECKING:
    from openavs.jobs.executors.local import LocalExecutor

_VERSIONS = ("openavs", "git", "packages", "python", "platform")
_REPORTS = ("report.json", "report.html", "per_clip.csv")
_COLUMNS = ("id", "group", "frames", "score", "f", "seconds")


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation; `report` has no value if clips failed and nothing was scored."""

    out: Path
    report: dict[str, Any] | None
    failed: Failures


class EvaluationOptions(ScoringOptions, total=False):
    """Options of `evaluate` that hold for all variants of a study, too."""

    overwrite: bool
    negatives: Sequence[str]
    command: str


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    out: Path,
    *,
    overwrite: bool = False,
    negatives: Sequence[str] = (),
    command: str = "",
    executor: LocalExecutor | None = None,
    progress: Progress | None = None,
    **scoring: Unpack[ScoringOptions],
) -> Evaluation:
    """Run the clips that are not finished (see `predictor.predict`), score all and write the reports into `out`.

    Args:
        predictor: The system.
        dataset: The split of a benchmark.
        out: The result folder.
        overwrite: Remove the earlier results first.
        negatives: Kinds of sounds that replace those of the clips, in further runs (`negatives.KINDS`).
        command: The command line that the report names.
        executor: Runs the clips in worker processes; None: in this process.
        progress: Called with `clips` and their numbers, and as `score` calls it.
        scoring: As for `score`. With `allow_missing`, clips that failed count as empty. The report names a `limit`.
    """
    limit = scoring.get("limit")
    chosen = dataset if limit is None else replace(dataset, clips=dataset.clips[:limit])
    names = folder_names(dataset.clips)
    splits = {kind: negative_split(dataset, kind) for kind in negatives}
    if splits:
        predictor = replace(predictor, build=cache(predictor.build))  # all runs share the loaded models
    if overwrite:
        _remove_reports(out)
    run = predict(predictor, chosen, out, names=names, overwrite=overwrite, executor=executor, progress=progress)
    _remove_reports(out)
    failed = dict(run.failed)
    for kind, split in splits.items():
        part = replace(split.dataset, clips=split.dataset.clips[:limit])
        folder = out / NEGATIVES / kind
        own = predict(predictor, part, folder, names=names, overwrite=overwrite, executor=executor, progress=progress)
        if split.pairs:
            write_pairs(folder / "pairs.csv", split.pairs)
        failed |= {f"{clip} with {TITLES[kind]}": reason for clip, reason in own.failed.items()}
    if failed and not scoring.get("allow_missing", False):
        return Evaluation(out, None, failed)
    predictions = out / "predictions"
    scores = score(dataset, predictions, progress=progress, **scoring)
    rows = {
        kind: score_negatives(split, out / NEGATIVES / kind / PredictionSink.folder, **scoring)
        for kind, split in splits.items()
    }
    asked: dict[str, Any] = {"root": str(dataset.root), "limit": limit, "command": command}
    folders = (out, *(out / NEGATIVES / kind for kind in splits))
    corrected = count_corrected(folders, (names[clip.id] for clip in chosen.clips))
    asked |= {"corrected": corrected, "incomparable": _incomparable(dataset, len(chosen.clips), corrected)}
    report = _report(scores, out, _timings(run, out), failed) | asked | negatives_report(scores.per_clip, rows)
    atomic_write(out / "report.json", json_bytes(report))
    atomic_write(out / "per_clip.csv", _per_clip_csv(report))
    shown = {kind: split.dataset for kind, split in splits.items()}
    write_benchmark_report(out / "report.html", report, chosen, predictions, shown)
    return Evaluation(out, report, failed)


# ---------------------------------------------------------------------------------------------- a recipe as a system


def recipe_predictor(
    recipe: Recipe,
    dataset: Dataset,
    card: BenchmarkConfig,
    build: Callable[[Recipe], Pipeline | StagedSchedule] | None = None,
    *,
    lock: Path | None = None,
    cache: CachePlace | None = None,
) -> Predictor:
    """Return a recipe as it is run on a benchmark: adapted to it, and built when there is a clip to run.

    Args:
        recipe: The recipe.
        dataset: The split.
        card: The benchmark.
        build: Builds the pipeline of the adapted recipe; by default `build_pipeline`.
        lock: A file of pinned model commits.
        cache: The folder of the stage cache; None: no cache.

    Raises:
        InputError: a recipe that does not fit the benchmark.
    """
    if dataset.task == "instances" and recipe.tracker is None:
        raise InputError(f"{dataset.benchmark} scores tracks, and the recipe has no tracker; add tracker.use=iou")
    fit = adapt_recipe(recipe, dataset, card)
    return Predictor(
        fit.to_dict(),
        lambda: build(fit) if build is not None else build_pipeline(fit, lock=lock, cache=cache)[0],
        _labels(fit, dataset, card),
        base=recipe.base,
        lock=lock,
        cache=cache,
    )


def adapt_recipe(recipe: Recipe, dataset: Dataset, card: BenchmarkConfig) -> Recipe:
    """The recipe with what a benchmark lays down: one frame a second, and for label maps the classes as vocabulary.

    A vocabulary of the recipe's own stays, and the recipe's aliases come before the card's.
    """
    data = recipe.to_dict()
    data["sample"]["fps"] = 1.0
    if dataset.task != "binary" and recipe.vocabulary is None:
        data["vocabulary"] = _phrases(dataset, card)
        data["aliases"] = {**card.aliases, **recipe.aliases}
    return recipe_from_dict(data, base=recipe.base)


def _phrases(dataset: Dataset, card: BenchmarkConfig) -> list[str]:
    """The classes after the background, as the card spells them."""
    return list(card.vocabulary or dataset.classes[1:])


def _labels(recipe: Recipe, dataset: Dataset, card: BenchmarkConfig) -> tuple[str, ...]:
    """The labels of a recipe's segments in the order of the classes; a recipe may name fewer classes than there are."""
    if dataset.task == "binary":
        return ()
    own = {plain_key(word): word for word in recipe.vocabulary or ()}
    phrases = _phrases(dataset, card)
    spelled = [
        next((own.pop(key) for key in map(plain_key, (phrase, name)) if key in own), phrase)
        for phrase, name in zip(phrases, dataset.classes[1:], strict=True)
    ]
    if own:
        raise InputError(
            f"the recipe's vocabulary has {', '.join(map(repr, own.values()))}, which {dataset.benchmark} has no class "
            "for; use its classes, with 'aliases' for other words, or leave the vocabulary out"
        )
    return (dataset.classes[0], *spelled)


# -------------------------------------------------------------------------------------------------------- the report


def count_corrected(folders: Iterable[Path], names: Iterable[str]) -> int:
    """Return the number of clips whose predictions a person corrected, in any of some result folders."""
    out = tuple(folders)
    return sum(any(is_corrected(folder, name) for folder in out) for name in names)


def _incomparable(dataset: Dataset, scored: int, corrected: int) -> str | None:
    """Why the figures do not compare with published ones: corrections, the data set's reason, or a limit of the run."""
    if corrected:
        return f"a person corrected {corrected:,} of {scored:,} clips"
    if dataset.incomparable is None and scored < len(dataset.clips):
        return f"{scored:,} of {len(dataset.clips):,} clips were scored"
    return dataset.incomparable


def _remove_reports(out: Path) -> None:
    """Remove an earlier report, which is about other results."""
    for name in _REPORTS:
        (out / name).unlink(missing_ok=True)


def _report(
    scores: BenchmarkScores, out: Path, timings: Mapping[str, dict[str, float]], failed: Failures
) -> dict[str, Any]:
    run = json.loads((out / "run.json").read_bytes())
    stages: dict[str, float] = {}
    for stage, seconds in (item for own in timings.values() for item in own.items()):
        stages[stage] = stages.get(stage, 0.0) + seconds
    return {
        **scores.to_dict(),
        "recipe": run["recipe"],
        "models": run["models"],
        "versions": {key: run[key] for key in _VERSIONS},
        "timings": {
            "stages": {stage: round(seconds, 4) for stage, seconds in stages.items()},
            "seconds": _total(stages),
            "per_clip": timings,
        },
        "failed": [{"id": clip, "reason": reason} for clip, reason in failed.items()],
        "date": run["started"],
    }


def _timings(run: PredictionRun, out: Path) -> dict[str, dict[str, float]]:
    """Return the seconds of each stage by clip, from the logs of the clips that are done."""
    found: dict[str, dict[str, float]] = {}
    for clip, number in run.shards.items():
        if clip not in run.failed:
            found[clip] = {k: v for own in read_timings(out, number).values() for k, v in own["stages"].items()}
    return found


def _total(stages: Mapping[str, float]) -> float:
    return round(sum(stages.values()), 4)


def _per_clip_csv(report: Mapping[str, Any]) -> bytes:
    """One line per clip: its scores and the seconds of each stage."""
    timings = report["timings"]["per_clip"]
    stages = list(report["timings"]["stages"])
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_COLUMNS, *stages], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in report["per_clip"]:
        own = timings.get(row["id"], {})
        writer.writerow({**row, **own, "seconds": _total(own)})
    return text.getvalue().encode()
