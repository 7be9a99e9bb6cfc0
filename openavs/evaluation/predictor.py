"""Runs a system over the clips of a split: results and predictions on disk.

OUT is a result folder as every command writes it (`jobs/`): finished clips are not run again, and another recipe or
data set is refused. OUT/predictions holds the masks in the benchmark's own layout, for any scorer; tracks are one file,
which is written from the results of all clips.

Binary predictions are hard masks, 0 and 255: this is what the published training-free results score, and the score of a
box is not a probability of its pixels. Only a student, which predicts a probability for every pixel, gives gray values.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openavs.caching.store import CachePlace
from openavs.errors import InputError
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.job_io import PredictionSink, folder_names, to_sample
from openavs.evaluation.track_predictions import RESULTS, result_to_tracks, write_tracks
from openavs.jobs.checkpoint import read_completion
from openavs.jobs.job import PIPELINE_BUILDER, ClipFinished, Job, PredictorOutput
from openavs.jobs.manifest import JobRequest, Manifest
from openavs.jobs.output_dir import open_folder, reopen_changed
from openavs.jobs.progress import JobProgress
from openavs.jobs.run import run_job
from openavs.jobs.sample import Sample
from openavs.jobs.shard import InlineExecutor
from openavs.models.device import default_threads, memory_share
from openavs.pipeline.pipeline import Progress
from openavs.results.filters import FilteredResult
from openavs.results.serialization import read_result
from openavs.structures.types import Clip

if TYPE_CHECKING:
    from openavs.jobs.executors.local import LocalExecutor

Failures = dict[str, str]
"""The sentence of each clip that failed, by its id."""


@dataclass(frozen=True)
class Predictor:
    """The system that is run: its recipe as plain data, and how it is built.

    Attributes:
        recipe: The resolved recipe.
        build: Builds the pipeline, a function of a clip; called when a clip has to be run in this process.
        labels: Labels of its segments in the order of the benchmark's class indices, the background first; only label
            maps need them.
        soft: Whether it returns a `ProbabilisticResult`. Results do not hold the probabilities, so a clip whose
            predictions were removed is run again.
        base: The folder of the recipe's own relative paths.
        builder: The function that builds it in worker processes, as `module:function`.
        lock: A file of pinned model commits.
        cache: The folder or address of the stage cache of worker processes.
    """

    recipe: Mapping[str, Any]
    build: Callable[[], Callable[[Clip], PredictorOutput]]
    labels: tuple[str, ...] = ()
    soft: bool = False
    base: Path | None = None
    builder: str = PIPELINE_BUILDER
    lock: Path | None = None
    cache: CachePlace | None = None


@dataclass(frozen=True)
class PredictionRun:
    """A finished run: its manifest, the clips that failed, and the shard of each clip by its id."""

    manifest: Manifest
    failed: Failures
    shards: Mapping[str, int]


def predict(
    predictor: Predictor,
    dataset: Dataset,
    out: Path,
    *,
    names: Mapping[str, str] | None = None,
    overwrite: bool = False,
    executor: LocalExecutor | None = None,
    progress: Progress | None = None,
) -> PredictionRun:
    """Run a system on every clip that is not finished.

    Args:
        predictor: The system.
        dataset: The split, or a part of it.
        out: The result folder.
        names: The clips' folders: `folder_names` of the whole split where `dataset` is a part of it.
        overwrite: Remove the earlier results first.
        executor: Runs the clips in worker processes; None: in this process.
        progress: Called with `clips` and their numbers.

    Raises:
        InputError: `out` holds the results of another recipe or split, or the system cannot be built.
    """
    names = names or folder_names(dataset.clips)
    labels = () if dataset.task == "binary" else predictor.labels
    out = out.absolute()
    root = dataset.root.absolute()
    spelling = dict(zip(dataset.classes, labels, strict=True)) if labels else {}
    samples = [to_sample(clip, names[clip.id], root, spelling) for clip in dataset.clips]
    data = {"benchmark": dataset.benchmark, "split": dataset.split}
    request = JobRequest(
        "evaluate",
        samples,
        predictor.recipe,
        labels,
        data,
        command="evaluate",
        default_threads=default_threads(1 if executor is None else executor.workers),
    )
    manifest = open_folder(out, request, overwrite=overwrite)
    job = Job(
        out,
        manifest.key,
        root,
        predictor.recipe,
        predictor.base,
        sink="openavs.jobs.job:Sink" if dataset.track_layout else "openavs.evaluation.job_io:PredictionSink",
        builder=predictor.builder,
        classes=labels,
        threads=manifest.threads,
        lock=predictor.lock,
        cache=predictor.cache,
        schedule="auto",
        share=1.0 if executor is None else memory_share(executor.workers, executor.devices),
    )
    if not predictor.soft and dataset.track_layout is None:
        _restore(job, manifest, samples)
    reopen_changed(out, manifest.key, manifest.requested)
    board = JobProgress(job, manifest, manifest.requested, {"executor": "inline" if executor is None else "local"})
    done = len(samples) - board.left

    def count(event: ClipFinished | None = None) -> None:
        nonlocal done
        done += event is not None
        if progress is not None:
            progress("clips", done, len(samples))

    board.on_clip = count
    count()
    run_job(job, manifest, executor or InlineExecutor(lambda: (predictor.build(), None)), board)
    (out / PredictionSink.folder).mkdir(exist_ok=True)  # also if every clip failed
    shards = {clip.id: number for clip, number in zip(dataset.clips, manifest.requested, strict=True)}
    failed: Failures = {}
    for clip, number in shards.items():
        completion = read_completion(out, number, manifest.key)
        [row] = ({},) if completion is None else completion["rows"]
        if row.get("status") == "failed":
            failed[clip] = row["detail"]
    if dataset.track_layout is not None:
        tracks = (
            (clip, result_to_tracks(read_result(out, names[clip]), labels)) for clip in shards if clip not in failed
        )
        write_tracks(out / PredictionSink.folder / RESULTS, tracks, dataset.track_layout)
    return PredictionRun(manifest, failed, shards)


def _restore(job: Job, manifest: Manifest, samples: Iterable[Sample]) -> None:
    """Write removed predictions of finished clips again: their results hold all that it takes."""
    sink = PredictionSink(job)
    for number, sample in zip(manifest.requested, samples, strict=True):
        if all(os.path.isfile(job.out / sink.folder / place) for place in sample.places):
            continue
        completion = read_completion(job.out, number, manifest.key)
        if completion is not None and completion["rows"][0]["status"] == "ok":
            try:
                result = read_result(job.out, sample.id)
            except InputError:
                continue  # the clip is run again
            sink.write(sample, None, result, FilteredResult(result, None, {}))  # type: ignore[arg-type]
