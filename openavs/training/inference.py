"""Inference with students: a pipeline for clips, and conversion of predictions to segments and maps for scoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from openavs.caching.store import StageCache
from openavs.config.recipe import Recipe, recipe_from_dict
from openavs.errors import InputError, ModelError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.jobs.job import STUDENT_BUILDER, ProbabilisticResult
from openavs.media.log_mel import RATE, SHORTEST, Floats
from openavs.models.device import resolve_device, set_threads, translate_oom_errors
from openavs.pipeline.pipeline import Progress
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import BoolMask, Clip, ClipResult, FrameResult, ImageArray, Segment, Waveform
from openavs.training.audio_features import features_of
from openavs.training.base import InstanceMask, Size, Student, StudentPrediction, load_student
from openavs.training.dataset import batches_to_predict
from openavs.training.models.backbones import VggishExtractor, load_vggish
from openavs.utils.concurrency import prefetch
from openavs.utils.text import pluralize

if TYPE_CHECKING:
    from openavs.evaluation.predictor import Predictor

BACKGROUND = "background"
BINARY_PHRASE = "sounding object"  # phrase of segments without a class
CHUNK_SECONDS = 10.0  # seconds of a long clip that are predicted together, the length of AVSBench's longest clips
UInt8Array = npt.NDArray[np.uint8]

# ------------------------------------------------------------------------------------------------ predictions


def predict_clip(
    student: Student, name: str, images: Sequence[ImageArray], audio: Floats, classes: Sequence[str] | None
) -> StudentPrediction:
    """Predict a whole clip, one run of frames after the other; `classes` as in `Student.predict`."""
    device = next(student.parameters()).device
    with torch.no_grad():
        batches = batches_to_predict(name, images, audio, student.view(training=False))
        return concatenate_predictions([student.predict(batch.to(device), classes)[0] for batch in batches])


def concatenate_predictions(parts: Sequence[StudentPrediction]) -> StudentPrediction:
    """Concatenate predictions along time."""
    frames = tuple(frame for part in renumber_tracks(parts) for frame in part.frames)
    probabilities = [part.probability for part in parts if part.probability is not None]
    return StudentPrediction(frames, np.concatenate(probabilities) if probabilities else None)


def renumber_tracks(parts: Iterable[StudentPrediction]) -> Iterator[StudentPrediction]:
    """Yield predictions with unique track numbers: equal numbers in two parts are different objects."""
    first = 0
    for part in parts:
        tracks = [instance.track for frame in part.frames for instance in frame if instance.track is not None]
        frames = (
            tuple(i if i.track is None else replace(i, track=i.track + first) for i in frame) for frame in part.frames
        )
        yield replace(part, frames=tuple(frames))
        first += max(tracks, default=-1) + 1


def gray_values(prediction: StudentPrediction, size: Size) -> UInt8Array:
    """Return probabilities times 255, `[T, *size]`; for a student without probabilities its masks as 0 and 255."""
    if prediction.probability is not None:
        gray = np.rint(prediction.probability * 255.0).astype(np.uint8)
        return np.stack([resize_nearest(frame, size) for frame in gray])
    unions = [_union(instances, size) for instances in prediction.frames]
    return np.stack(unions).astype(np.uint8) * np.uint8(255)


def label_maps(prediction: StudentPrediction, index: Mapping[str, int], size: Size) -> UInt8Array:
    """Return class indices `[T, *size]`; the highest score wins, and names that are not in `index` are left out."""
    maps = []
    for frame in prediction.frames:
        painted = np.zeros(size, dtype=np.uint8)
        for instance in sorted(frame, key=lambda instance: instance.score):
            if instance.label is not None and instance.label in index:
                painted[resize_nearest(instance.mask, size)] = index[instance.label]
        maps.append(painted)
    return np.stack(maps)


def scored_maps(
    prediction: StudentPrediction, clip: BenchmarkClip, classes: Sequence[str] | None, size: Size
) -> npt.NDArray[Any]:
    """Return the maps that a metric takes for the annotated frames of a clip."""
    if classes is None:
        return gray_values(prediction, size)[list(clip.annotated)]
    return label_maps(prediction, {name: i for i, name in enumerate(classes)}, size)[list(clip.annotated)]


def frame_results(prediction: StudentPrediction, indices: range, times: Sequence[float]) -> list[FrameResult]:
    """Convert masks to frame results; students have no captions or prompts."""
    return [
        FrameResult(
            index, times[index], segments=tuple(_segment(instance) for instance in frame if instance.mask.any())
        )
        for index, frame in zip(indices, prediction.frames, strict=True)
    ]


def resize_nearest(mask: npt.NDArray[Any], size: Size) -> npt.NDArray[Any]:
    """Resize a mask by the nearest pixel."""
    if mask.shape == size:
        return mask
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _union(instances: Sequence[InstanceMask], size: Size) -> BoolMask:
    union = np.zeros(size, dtype=np.bool_)
    for instance in instances:
        union |= resize_nearest(instance.mask, size)
    return union


def _segment(instance: InstanceMask) -> Segment:
    rows, columns = np.flatnonzero(instance.mask.any(axis=1)), np.flatnonzero(instance.mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    match = None if instance.label is None else "exact"
    score = min(max(instance.score, 0.0), 1.0)
    phrase = instance.label or BINARY_PHRASE
    return Segment(mask_to_rle(instance.mask), box, phrase, score, None, instance.label, match, instance.track)


# --------------------------------------------------------------------------------------------------- pipeline


class StudentPipeline:
    """A student with its VGGish. `classes` are the class names, background first; None for binary masks."""

    def __init__(
        self,
        student: Student,
        extractor: VggishExtractor,
        classes: Sequence[str] | None,
        recipe: Mapping[str, Any],
        ref: str,
    ) -> None:
        self.student, self.extractor, self.classes = student, extractor, None if classes is None else tuple(classes)
        self.recipe = dict(recipe)
        self.models = {ref: {"facts": student.facts}, extractor.ref: {"fingerprint": extractor.fingerprint}}

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> StudentPipeline:
        """Load the student of a recipe (`load_recipe("student:DIR")`); it computes in float32.

        Its classes are the recipe's vocabulary; without one those of a student of fixed classes, else it returns binary
        masks.

        Raises:
            ModelError: no such student, or its VGGish is missing or another one.
            InputError: a vocabulary that does not fit the student.
        """
        assert recipe.student is not None
        ref = recipe.student.model
        place = resolve_device(recipe.device, "float32")
        student = load_student(ref, recipe.offline).to(place.device)
        extractor = find_audio_extractor(ref, student, place.device, recipe.offline)
        return cls(student, extractor, _classes(student, recipe.vocabulary), recipe.to_dict(), ref)

    def run(self, clips: Iterable[Clip], progress: Progress | None = None) -> Iterator[ClipResult]:
        """Segment clips one by one; the next one is opened while the student works."""
        for clip in prefetch(clips, depth=1):
            yield self(clip, progress)

    def __call__(self, clip: Clip, progress: Progress | None = None) -> ClipResult:
        """Segment one clip, chunk by chunk: memory does not grow with its length."""
        return self._segment(clip, progress, lambda part: None)

    def soft(self, clip: Clip, progress: Progress | None = None) -> ProbabilisticResult:
        """Segment one clip and return the probability of each pixel in a byte."""
        maps: list[UInt8Array] = []
        result = self._segment(clip, progress, lambda part: maps.append(gray_values(part, clip.size)))
        return ProbabilisticResult(result, np.concatenate(maps))

    def _segment(self, clip: Clip, progress: Progress | None, keep: Callable[[StudentPrediction], None]) -> ClipResult:
        """Segment one clip; `keep` is called with the prediction of each chunk."""
        report = progress or (lambda stage, done, total: None)
        started = time.monotonic()
        features = self._audio_features(clip)
        timings = {"caption": time.monotonic() - started}
        started = time.monotonic()
        frames: list[FrameResult] = []
        for chunk, part in zip(_chunks(clip.times), renumber_tracks(self._predict(clip, features)), strict=True):
            frames += frame_results(part, chunk, clip.times)
            keep(part)
            report("localize", chunk.stop, len(clip.times))
        timings["localize"] = time.monotonic() - started
        return ClipResult(
            clip=clip.id,
            size=clip.size,
            frames=tuple(frames),
            source=clip.source,
            recipe=self.recipe,
            models=self.models,
            timings={stage: round(seconds, 4) for stage, seconds in timings.items()},
            warnings=clip.warnings,
        )

    def _predict(self, clip: Clip, features: Floats) -> Iterator[StudentPrediction]:
        """Yield a prediction for each chunk, from one pass over the file."""
        stream = clip.frames(None)
        for chunk in _chunks(clip.times):
            frames = list(islice(stream, len(chunk)))
            if lost := len(set(chunk) - {frame.index for frame in frames}):
                raise InputError(f"{clip.source or clip.id} lacks {pluralize(lost, 'frame')}; it is cut short")
            images, audio = [frame.image for frame in frames], features[chunk.start : chunk.stop]
            with translate_oom_errors():
                part = predict_clip(self.student, clip.id, images, audio, self.classes)
            yield part

    def _audio_features(self, clip: Clip) -> Floats:
        """Return one feature per frame: that of its second within the chunk."""
        if clip.audio is None:
            raise InputError(f"{clip.source or clip.id} has no sound track; give its sound with --audio FILE")
        rows = []
        for chunk in _chunks(clip.times):
            start = float(np.floor(clip.times[chunk.start] / CHUNK_SECONDS)) * CHUNK_SECONDS
            seconds = [int(clip.times[i] - start) for i in chunk]
            features = features_of(self.extractor, _cut_audio(clip.audio, start), max(seconds) + 1, clip.id)
            rows.append(features[seconds])
        return np.concatenate(rows)


def _chunks(times: Sequence[float]) -> list[range]:
    """Return the frames of each chunk of a clip."""
    number = [int(time // CHUNK_SECONDS) for time in times]
    starts = [i for i in range(len(number)) if not i or number[i] != number[i - 1]]
    return [range(first, last) for first, last in zip(starts, [*starts[1:], len(number)], strict=True)]


def _cut_audio(audio: Waveform, start: float) -> Waveform:
    """Return a chunk's audio; one that is too short for a feature starts earlier if possible."""
    shortest = (SHORTEST + 1) / RATE
    return audio.cut(max(0.0, min(start, audio.duration - shortest)), start + CHUNK_SECONDS)


def find_audio_extractor(ref: str, student: Student, device: Any, offline: bool = False) -> VggishExtractor:
    """Load the VGGish of a student: in its folder, beside it, or the one named by its config.json."""
    recorded = student.facts.get("audio") or {}
    folders = [Path(ref) / "vggish", Path(ref).absolute().parent / "vggish"]
    existing = [str(folder) for folder in folders if (folder / "config.json").is_file()]
    model = recorded.get("model")
    if not existing and not model:
        raise ModelError(f"the student '{ref}' does not record its VGGish; put its folder at {folders[0]}")
    extractor = load_vggish(existing[0] if existing else str(model), device, offline)
    # Students depend on the exact features they were trained with.
    if recorded.get("fingerprint") not in (None, extractor.fingerprint):
        raise ModelError(
            f"the student '{ref}' was trained with another VGGish than '{extractor.ref}'; put that one in its place"
        )
    return extractor


def _classes(student: Student, vocabulary: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the class names, background first: those of the vocabulary, else of the student; None for binary masks."""
    own = tuple(getattr(student.config, "classes", ()))
    if vocabulary is None:
        return own or None
    classes = (BACKGROUND, *vocabulary)
    student.check("open-vocabulary", classes)
    return classes


def student_predictor(recipe: Recipe, dataset: Dataset) -> Predictor:
    """Return a student as a `Predictor`; for binary masks its predictions are probabilities."""
    from openavs.evaluation.predictor import Predictor  # not needed by the trainer, which predicts with this module

    binary, base = dataset.task == "binary", recipe.base
    if not binary:
        recipe = recipe_from_dict({**recipe.to_dict(), "vocabulary": list(dataset.classes[1:])})
    assert recipe.student is not None
    load_student(recipe.student.model, recipe.offline).check(dataset.task, dataset.classes)

    def build() -> Any:
        pipeline = StudentPipeline.from_recipe(recipe)
        return pipeline.soft if binary else pipeline

    builder = f"{__name__}:build_soft_student" if binary else STUDENT_BUILDER
    labels = () if binary else dataset.classes
    return Predictor(recipe.to_dict(), build, labels, soft=binary, base=base, builder=builder)


def build_student(
    recipe: Recipe, *, threads: int | None = None, **options: Any
) -> tuple[StudentPipeline, StageCache | None]:
    """Build the student of a recipe as `build_pipeline` does; it has no stages, lock file or cache."""
    student = StudentPipeline.from_recipe(recipe)
    set_threads(threads)
    return student, None


def build_soft_student(
    recipe: Recipe, *, threads: int | None = None, **options: Any
) -> tuple[Callable[[Clip], ProbabilisticResult], StageCache | None]:
    """Build a student that returns the probability of each pixel."""
    student, cache = build_student(recipe, threads=threads)
    return student.soft, cache
