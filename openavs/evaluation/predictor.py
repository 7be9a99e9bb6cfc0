"""Runs a system over the clips of a split: results and predictions on disk.

OUT is a result folder as every command writes it (`jobs/`): finished clips are not run again, and another recipe or
data set is refused. OUT/predictions holds the masks in the benchmark's own layout, for any scorer; tracks are one file,
which is written from the results of all clips.

Binary predictions are hard masks, 0 and 255: this is what the published training-free results score, and the score of a
box is not a probability of its pixels. Only a student, which predicts a probability for every pixel, gives gray values.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from openavs.caching.build import StagedSchedule
from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.datasets.mask_io import png_size, resize_mask
from openavs.evaluation.track_predictions import RESULTS, result_to_tracks, write_tracks
from openavs.jobs.checkpoint import read_completion
from openavs.jobs.executors.base import Executor
from openavs.jobs.executors.local import InlineExecutor, LocalExecutor
from openavs.jobs.job import PIPELINE_BUILDER, ClipFinished, Job, PredictorOutput, ProbabilisticResult, Sink
from openavs.jobs.manifest import JobRequest, Manifest
from openavs.jobs.output_dir import open_folder, reopen_changed
from openavs.jobs.progress import JobProgress
from openavs.jobs.run import run_job
from openavs.jobs.sample import Sample, locate
from openavs.jobs.worker import default_threads, memory_share, visible_gpus
from openavs.pipeline.pipeline import Progress
from openavs.results.filters import FilteredResult
from openavs.results.serialization import mask_values, palette_png, read_result
from openavs.structures.masks import segments_to_label_map, segments_to_mask
from openavs.structures.types import Clip, ClipResult, ImageArray
from openavs.utils.fs import remove_file, safe_id, write_hashed
from openavs.utils.text import pluralize

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
        cache: The folder of the stage cache of worker processes.
    """

    recipe: Mapping[str, Any]
    build: Callable[[], Callable[[Clip], PredictorOutput] | StagedSchedule]
    labels: tuple[str, ...] = ()
    soft: bool = False
    base: Path | None = None
    builder: str = PIPELINE_BUILDER
    lock: Path | None = None
    cache: Path | None = None


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
    workers: int = 1,
    progress: Progress | None = None,
) -> PredictionRun:
    """Run a system on every clip that is not finished.

    Args:
        predictor: The system.
        dataset: The split, or a part of it.
        out: The result folder.
        names: The clips' folders: `folder_names` of the whole split where `dataset` is a part of it.
        overwrite: Remove the earlier results first.
        workers: Processes; one: this process.
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
        default_threads=default_threads(workers),
    )
    manifest = open_folder(out, request, overwrite=overwrite)
    devices = visible_gpus(str(predictor.recipe.get("device", "auto"))) if workers > 1 else ()
    job = Job(
        out,
        manifest.key,
        root,
        predictor.recipe,
        predictor.base,
        sink="openavs.jobs.job:Sink" if dataset.track_layout else "openavs.evaluation.predictor:PredictionSink",
        builder=predictor.builder,
        classes=labels,
        threads=manifest.threads,
        lock=predictor.lock,
        cache=predictor.cache,
        schedule="auto",
        share=memory_share(workers, devices),
    )
    if not predictor.soft and dataset.track_layout is None:
        _restore(job, manifest, samples)
    reopen_changed(out, manifest.key, manifest.requested)
    executor: Executor = InlineExecutor(lambda: (predictor.build(), None))
    if workers > 1:
        executor = LocalExecutor(workers, devices)
    board = JobProgress(job, manifest, manifest.requested, {"executor": "local" if workers > 1 else "inline"})
    done = len(samples) - board.left

    def count(event: ClipFinished | None = None) -> None:
        nonlocal done
        done += event is not None
        if progress is not None:
            progress("clips", done, len(samples))

    board.on_clip = count
    count()
    run_job(job, manifest, executor, board)
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


def folder_names(clips: Iterable[BenchmarkClip]) -> dict[str, str]:
    """Return the folder below OUT/clips of each clip, by its id.

    Ids are those of YouTube: they may begin with a dash, and differ in case alone, which some file systems ignore.
    Those get a hash of themselves, whichever clips are run.
    """
    ids = [clip.id for clip in clips]
    alike = Counter(id.casefold() for id in ids)
    return {id: safe_id(id, taken=[id] if alike[id.casefold()] > 1 else ()) for id in ids}


def to_sample(clip: BenchmarkClip, name: str, root: Path, spelling: Mapping[str, str] | None = None) -> Sample:
    """Return a benchmark's clip as a sample: one frame a second, the wav beside, its classes as plain phrases.

    Args:
        clip: The clip.
        name: The sample's id.
        root: The absolute folder that the sample's paths start from.
        spelling: Phrases by class; by default the class with blanks in place of dashes.
    """
    masks = (path for path in clip.truth if path is not None and path.suffix == ".png")  # AVSBench-OV has one JSON
    like = next((path for path in masks if os.path.isfile(path)), None)
    video = None if clip.video is None else _relative(clip.video, root)
    is_video = clip.times is not None and video is not None  # its frames and its sound are in one file
    return Sample(
        name,
        (video or "") if is_video else _relative(clip.frames[0].parent, root) if clip.frames else "",
        name=clip.id if clip.id != name else None,
        audio=None if is_video else _relative(clip.audio, root),
        frames=tuple(_relative(frame, root) for frame in clip.frames),
        places=clip.predictions,
        like=None if like is None else _relative(like, root),
        classes=tuple((spelling or {}).get(label, label.replace("-", " ")) for label in clip.classes),
        video=None if is_video else video,
        sound=clip.sound,
        expression=clip.expression,
        times=clip.times() if clip.times is not None else (),
    )


def _relative(path: Path, root: Path) -> str:
    text = str(path.absolute())
    return text[len(str(root)) + 1 :] if text.startswith(f"{root}{os.sep}") else text


class PredictionSink(Sink):
    """Writes the mask of every frame below `OUT/predictions`, in the benchmark's layout, at the size of its masks."""

    folder: ClassVar[str] = "predictions"
    pictures = False  # collections may have a million clips

    def places(self, sample: Sample, result: ClipResult) -> list[str]:
        """Return the path of each frame's mask below the folder.

        Raises:
            InputError: the result has not one frame for each place.
        """
        if len(sample.places) != len(result.frames):
            frames = pluralize(len(sample.places), "frame")
            raise InputError(f"{sample.id} has {frames} and its result {len(result.frames)}; run it again")
        return list(sample.places)

    def write(self, sample: Sample, clip: Clip, output: PredictorOutput, filtered: FilteredResult) -> dict[str, str]:
        """Write the masks of a clip."""
        masks: PredictorOutput = output if isinstance(output, ProbabilisticResult) else filtered.result
        like = None if sample.like is None else locate(self.job.root, sample.like)
        size = None if like is None or not os.path.isfile(like) else png_size(like)
        pngs = encode_masks(masks, self.job.classes, size)
        return {
            f"{self.folder}/{place}": write_hashed(self.job.out / self.folder / place, png)
            for place, png in zip(self.places(sample, filtered.result), pngs, strict=True)
        }

    def remove(self, sample: Sample) -> None:
        """Remove the masks of a clip."""
        for place in sample.places:
            remove_file(self.job.out / self.folder / place, self.job.out)


def encode_masks(
    output: PredictorOutput, classes: tuple[str, ...], size: tuple[int, int] | None = None
) -> Iterator[bytes]:
    """Yield the mask of every frame as a PNG of `size` (height, width; None: the clip's).

    Without `classes` the union of all segments, gray, 0 or 255, or the probabilities of a `ProbabilisticResult`. With
    `classes` the class index of the best segment at each pixel, as a palette PNG; segments without one of them are not
    painted.
    """
    encode = palette_png if classes else gray_png
    for mask in _masks(output, classes):
        yield encode(mask if size is None else resize_mask(mask, size))


def _masks(output: PredictorOutput, classes: tuple[str, ...]) -> Iterator[ImageArray]:
    result = output.result if isinstance(output, ProbabilisticResult) else output
    if classes:
        for frame, numbers in zip(result.frames, mask_values(result, "class", classes), strict=True):
            yield segments_to_label_map(frame.segments, numbers, result.size)
    elif isinstance(output, ProbabilisticResult):
        yield from output.probability
    else:
        for frame in result.frames:
            yield segments_to_mask(frame.segments, result.size).astype(np.uint8) * 255


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


def gray_png(mask: ImageArray) -> bytes:
    """Encode an image uint8 `[H, W]` as an 8-bit gray PNG."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()
