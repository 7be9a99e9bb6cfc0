"""A system over the clips of a split: results and predictions on disk, one clip after the other.

OUT is a result folder as `segment` writes it (`results/run_folder.py`), so what is there is not done again, and another
recipe or data set is refused; OUT/predictions holds the masks in the benchmark's own layout, for any scorer to take. A
clip's predictions are written before its result.json, whose presence means that both are there.

Binary predictions are hard masks, 0 and 255: what the published training-free results score, and what a system of boxes
and masks has to say (a score of a box is no probability of its pixels). Only a student, which has a probability for
every pixel, gives grey values.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pictures

from openavs.caching.stagewise import StagedSchedule
from openavs.errors import InputError, OpenAVSError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.datasets.mask_io import png_size, resize_mask
from openavs.media import open_images
from openavs.pipeline.pipeline import Progress
from openavs.results.run_folder import RunWriter
from openavs.results.serialization import Values, mask_values, palette_png, read_result
from openavs.structures.types import Clip, ClipResult, ImageArray, segments_to_label_map, segments_to_mask
from openavs.utils.concurrency import prefetch
from openavs.utils.fs import atomic_write, safe_id

log = logging.getLogger(__name__)

Failures = dict[str, str]
"""Why each clip that failed did, by its id."""


@dataclass(frozen=True, eq=False)
class ProbabilisticResult:
    """A result with the probability of every pixel times 255, uint8 `[T, H, W]`, in the clip's size."""

    result: ClipResult
    probability: ImageArray


PredictorOutput = ClipResult | ProbabilisticResult


@dataclass(frozen=True)
class Predictor:
    """What is run: its recipe as plain data, and how to build it, which happens only if there is something to do.

    `labels` are the labels of its segments in the order of the benchmark's class indices, the background first; only
    label maps need them. A `soft` system answers with `Soft`; results do not hold the probabilities, so a clip whose
    predictions were removed is run again.
    """

    recipe: Mapping[str, Any]
    build: Callable[[], Callable[[Clip], PredictorOutput]]
    labels: tuple[str, ...] = ()
    soft: bool = False


def predict(
    system: Predictor,
    dataset: Dataset,
    out: Path,
    *,
    names: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Failures:
    """Runs a system on every clip that is not done and returns those that failed; `progress` counts clips.

    The next clip is read while the models work on this one. `names` are the clips' folders: `folder_names` of the whole
    split where `dataset` is a part of it.

    Raises:
        InputError: `out` holds the results of another recipe or split, or the system cannot be built.
    """
    tell = progress or (lambda stage, done, total: None)
    names = names or folder_names(dataset.clips)
    labels = () if dataset.task == "binary" else system.labels
    values: Values = "class" if labels else "instance"
    data = {"benchmark": dataset.benchmark, "split": dataset.split}
    failed: Failures = {}
    with RunWriter(out, system.recipe, values=values, classes=labels, data=data, overwrite=overwrite) as run:
        if overwrite:
            _remove_predictions(out)
        (out / "predictions").mkdir(exist_ok=True)
        todo = [
            clip
            for clip in dataset.clips
            if not run.is_done(names[clip.id]) or (system.soft and not _has_predictions(clip, out))
        ]
        _restore(dataset, labels, todo, names, out)
        done = len(dataset.clips) - len(todo)
        tell("clips", done, len(dataset.clips))
        segment = system.build() if todo else None
        for clip, opened in _ready(segment, dataset, labels, todo, names):
            assert segment is not None
            started = time.monotonic()
            try:
                _run_clip(segment, opened, run, partial(write_predictions, dataset, labels, clip))
            except OpenAVSError as problem:
                failed[clip.id] = str(problem)
                log.warning("clip %s failed: %s", clip.id, problem)
                for path in filter(os.path.lexists, (out / "predictions" / path for path in clip.predictions)):
                    path.unlink()
                run.fail(names[clip.id], str(problem), seconds=time.monotonic() - started)
            done += 1
            tell("clips", done, len(dataset.clips))
    return failed


def folder_names(clips: Iterable[BenchmarkClip]) -> dict[str, str]:
    """The folder below OUT/clips of each clip, by its id.

    Ids are YouTube's: they may begin with a dash, and differ in case alone, which not every disk tells apart. Those get
    a hash of themselves, whichever clips are run.
    """
    ids = [clip.id for clip in clips]
    alike = Counter(id.casefold() for id in ids)
    return {id: safe_id(id, taken=[id] if alike[id.casefold()] > 1 else ()) for id in ids}


def to_clip(clip: BenchmarkClip, name: str, spelling: Mapping[str, str] | None = None) -> Clip:
    """A benchmark's clip as the pipeline takes it: a frame a second, the wav beside, its classes as plain phrases."""
    phrases = tuple((spelling or {}).get(label, label.replace("-", " ")) for label in clip.classes)
    return open_images(clip.frames, id=name, audio=clip.audio, fps=1.0, labels=phrases)


def write_predictions(
    dataset: Dataset, labels: tuple[str, ...], clip: BenchmarkClip, folder: Path, answer: PredictorOutput
) -> None:
    """Writes the mask of every frame below `folder`, in the benchmark's layout and in the size of its masks.

    Binary: the union of all segments, grey, 0 or 255, or the probabilities of a `Soft` answer. Otherwise the class
    index of the best segment at each pixel, as a palette PNG; segments without one of the `labels` are not painted.

    Raises:
        InputError: the result has not one frame for each of the clip's.
    """
    result = answer.result if isinstance(answer, ProbabilisticResult) else answer
    if len(result.frames) != len(clip.frames):
        raise InputError(f"{clip.id} has {len(clip.frames)} frames and its result {len(result.frames)}; run it again")
    pictures = (path for path in clip.truth if path is not None and path.suffix == ".png")  # AVSBench-OV's is one JSON
    size = next((png_size(path) for path in pictures if os.path.isfile(path)), result.size)
    if dataset.task != "binary":
        masks: Iterable[ImageArray] = _label_maps(result, labels)
    else:
        masks = answer.probability if isinstance(answer, ProbabilisticResult) else _unions(result)
    encode = grey_png if dataset.task == "binary" else palette_png
    for place, mask in zip(clip.predictions, masks, strict=True):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, encode(resize_mask(mask, size)))


def _unions(result: ClipResult) -> Iterator[ImageArray]:
    for frame in result.frames:
        yield segments_to_mask(frame.segments, result.size).astype(np.uint8) * 255


def _label_maps(result: ClipResult, labels: tuple[str, ...]) -> Iterator[ImageArray]:
    for frame, numbers in zip(result.frames, mask_values(result, "class", labels), strict=True):
        yield segments_to_label_map(frame.segments, numbers, result.size)


def _run_clip(
    segment: Callable[[Clip], PredictorOutput],
    opened: Clip | OpenAVSError,
    run: RunWriter,
    write: Callable[[Path, PredictorOutput], None],
) -> None:
    if isinstance(opened, OpenAVSError):
        raise opened
    started = time.monotonic()
    answer = segment(opened)
    seconds = time.monotonic() - started
    result = answer.result if isinstance(answer, ProbabilisticResult) else answer
    # `extras` is called between a result's masks and its result.json.
    run.write(result, seconds=seconds, extras=lambda folder: write(run.out / "predictions", answer))


def _ready(
    segment: Any, dataset: Dataset, labels: tuple[str, ...], clips: list[BenchmarkClip], names: Mapping[str, str]
) -> Iterator[tuple[BenchmarkClip, Clip | OpenAVSError]]:
    """Every clip opened, the next one while the models work; for models in turns a window is prepared first."""
    size = segment.window if isinstance(segment, StagedSchedule) else len(clips)
    for start in range(0, len(clips), size or 1):
        window = clips[start : start + size]
        if isinstance(segment, StagedSchedule):
            opened = _opened(dataset, labels, window, names)
            segment.prepare(clip for _, clip in opened if isinstance(clip, Clip))
        yield from prefetch(_opened(dataset, labels, window, names), depth=1)


def _opened(
    dataset: Dataset, labels: tuple[str, ...], clips: Iterable[BenchmarkClip], names: Mapping[str, str]
) -> Iterator[tuple[BenchmarkClip, Clip | OpenAVSError]]:
    """Every clip opened, or why it cannot be: one that is damaged does not end the run."""
    spelling = dict(zip(dataset.classes, labels, strict=True)) if labels else {}
    for clip in clips:
        try:
            yield clip, to_clip(clip, names[clip.id], spelling)
        except OpenAVSError as problem:
            yield clip, problem


def _restore(
    dataset: Dataset, labels: tuple[str, ...], todo: Iterable[BenchmarkClip], names: Mapping[str, str], out: Path
) -> None:
    """Writes the predictions of finished clips anew where they were removed; their results hold all that it takes."""
    unfinished = {clip.id for clip in todo}
    for clip in dataset.clips:
        if clip.id not in unfinished and not _has_predictions(clip, out):
            write_predictions(dataset, labels, clip, out / "predictions", read_result(out, names[clip.id]))


def _has_predictions(clip: BenchmarkClip, out: Path) -> bool:
    return all(os.path.isfile(out / "predictions" / path) for path in clip.predictions)


def _remove_predictions(out: Path) -> None:
    folder = out / "predictions"
    if folder.is_symlink():
        raise InputError(f"{folder} is a link; give an output folder of its own")
    shutil.rmtree(folder, ignore_errors=True)


def grey_png(mask: ImageArray) -> bytes:
    """A picture uint8 `[H, W]` as an 8-bit grey PNG."""
    buffer = io.BytesIO()
    Pictures.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()
