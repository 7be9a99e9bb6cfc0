"""Inference with students: a pipeline for clips, and conversion of predictions to segments and maps for scoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow

from openavs.caching.build import set_threads
from openavs.caching.store import StageCache
from openavs.config.recipe import Recipe, recipe_from_dict
from openavs.errors import InputError, ModelError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.predictor import Predictor
from openavs.jobs.job import STUDENT_BUILDER
from openavs.jobs.sink import ProbabilisticResult
from openavs.media.log_mel import RATE, SHORTEST, Floats
from openavs.models.device import resolve_device
from openavs.models.oom import translate_oom_errors
from openavs.pipeline.pipeline import Progress
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import BoolMask, Clip, ClipResult, FrameResult, ImageArray, Segment, Waveform
from openavs.training.base import InstanceMask, Size, Student, StudentPrediction
from openavs.training.data.audio_features import features_of
from openavs.training.data.dataset import batches_to_predict
from openavs.training.models.vggish import VggishExtractor, load_vggish
from openavs.training.registry import load_student
from openavs.utils.concurrency import prefetch
from openavs.utils.text import pluralize

BINARY_PHRASE = "sounding object"
Grey = npt.NDArray[np.uint8]


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
    shares = [part.probability for part in parts if part.probability is not None]
    return StudentPrediction(frames, np.concatenate(shares) if shares else None)


def renumber_tracks(parts: Iterable[StudentPrediction]) -> Iterator[StudentPrediction]:
    """Yield predictions with unique track numbers: those of one part are not those of the next."""
    taken = 0
    for part in parts:
        tracks = [found.track for frame in part.frames for found in frame if found.track is not None]
        frames = (
            tuple(f if f.track is None else replace(f, track=f.track + taken) for f in frame) for frame in part.frames
        )
        yield replace(part, frames=tuple(frames))
        taken += max(tracks, default=-1) + 1


def gray_values(prediction: StudentPrediction, size: Size) -> Grey:
    """Return probabilities times 255, `[T, *size]`; for a student without probabilities its masks as 0 and 255."""
    if prediction.probability is not None:
        shares = np.rint(prediction.probability * 255.0).astype(np.uint8)
        return np.stack([resize_nearest(share, size) for share in shares])
    unions = [_union(found, size) for found in prediction.frames]
    return np.stack(unions).astype(np.uint8) * np.uint8(255)


def label_maps(prediction: StudentPrediction, index: Mapping[str, int], size: Size) -> Grey:
    """Return class indices `[T, *size]`; the highest score wins, and names that are not in `index` are left out."""
    maps = []
    for frame in prediction.frames:
        painted = np.zeros(size, dtype=np.uint8)
        for found in sorted(frame, key=lambda found: found.score):
            if found.label is not None and found.label in index:
                painted[resize_nearest(found.mask, size)] = index[found.label]
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
        FrameResult(index, times[index], segments=tuple(_segment(found) for found in frame if found.mask.any()))
        for index, frame in zip(indices, prediction.frames, strict=True)
    ]


def resize_nearest(mask: npt.NDArray[Any], size: Size) -> npt.NDArray[Any]:
    """Resize a mask by the nearest pixel."""
    if mask.shape == size:
        return mask
    return np.asarray(Pillow.fromarray(mask).resize((size[1], size[0]), Pillow.Resampling.NEAREST))


def _union(found: Sequence[InstanceMask], size: Size) -> BoolMask:
    union = np.zeros(size, dtype=np.bool_)
    for one in found:
        union |= resize_nearest(one.mask, size)
    return union


def _segment(found: InstanceMask) -> Segment:
    rows, columns = np.flatnonzero(found.mask.any(axis=1)), np.flatnonzero(found.mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    how = None if found.label is None else "exact"
    score = min(max(found.score, 0.0), 1.0)
    phrase = found.label or BINARY_PHRASE
    return Segment(mask_to_rle(found.mask), box, phrase, score, None, found.label, how, found.track)


CHUNK_SECONDS = 10.0  # seconds of a long clip that are predicted together, the length of AVSBench's longest clips
BACKGROUND = "background"


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
        shares: list[Grey] = []
        result = self._segment(clip, progress, lambda part: shares.append(gray_values(part, clip.size)))
        return ProbabilisticResult(result, np.concatenate(shares))

    def _segment(self, clip: Clip, progress: Progress | None, keep: Callable[[StudentPrediction], None]) -> ClipResult:
        """Segment one clip; `keep` is called with the prediction of each chunk."""
        tell = progress or (lambda stage, done, total: None)
        started = time.monotonic()
        heard = self._audio_features(clip)
        timings = {"caption": time.monotonic() - started}
        started = time.monotonic()
        frames: list[FrameResult] = []
        for chunk, part in zip(_chunks(clip.times), renumber_tracks(self._predict(clip, heard)), strict=True):
            frames += frame_results(part, chunk, clip.times)
            keep(part)
            tell("localize", chunk.stop, len(clip.times))
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

    def _predict(self, clip: Clip, heard: Floats) -> Iterator[StudentPrediction]:
        """Yield a prediction for each chunk, from one pass over the file."""
        stream = clip.frames(None)
        for chunk in _chunks(clip.times):
            pictures = list(islice(stream, len(chunk)))
            if lost := len(set(chunk) - {picture.index for picture in pictures}):
                raise InputError(f"{clip.source or clip.id} lacks {pluralize(lost, 'frame')}; it is cut short")
            images, sound = [picture.image for picture in pictures], heard[chunk.start : chunk.stop]
            with translate_oom_errors():
                part = predict_clip(self.student, clip.id, images, sound, self.classes)
            yield part

    def _audio_features(self, clip: Clip) -> Floats:
        """Return one feature per frame: that of its second within the chunk."""
        if clip.audio is None:
            raise InputError(f"{clip.source or clip.id} has no sound track; give its sound with --audio FILE")
        rows = []
        for chunk in _chunks(clip.times):
            start = float(np.floor(clip.times[chunk.start] / CHUNK_SECONDS)) * CHUNK_SECONDS
            seconds = [int(clip.times[i] - start) for i in chunk]
            heard = features_of(self.extractor, _sound(clip.audio, start), max(seconds) + 1, clip.id)
            rows.append(heard[seconds])
        return np.concatenate(rows)


def _chunks(times: Sequence[float]) -> list[range]:
    """Yield the frames of each chunk of a clip."""
    number = [int(time // CHUNK_SECONDS) for time in times]
    starts = [i for i in range(len(number)) if not i or number[i] != number[i - 1]]
    return [range(first, last) for first, last in zip(starts, [*starts[1:], len(number)], strict=True)]


def _sound(audio: Waveform, start: float) -> Waveform:
    """Return a chunk's audio; one that is too short for a feature starts earlier if possible."""
    shortest = (SHORTEST + 1) / RATE
    return audio.cut(max(0.0, min(start, audio.duration - shortest)), start + CHUNK_SECONDS)


def find_audio_extractor(ref: str, student: Student, device: Any, offline: bool = False) -> VggishExtractor:
    """Load the VGGish of a student: in its folder, beside it, or the one named by its config.json."""
    known = student.facts.get("audio") or {}
    beside = [Path(ref) / "vggish", Path(ref).absolute().parent / "vggish"]
    places = [str(path) for path in beside if (path / "config.json").is_file()]
    named = known.get("model")
    if not places and not named:
        raise ModelError(f"the student '{ref}' does not record its VGGish; put its folder at {beside[0]}")
    extractor = load_vggish(places[0] if places else str(named), device, offline)
    if known.get("fingerprint") not in (None, extractor.fingerprint):
        raise ModelError(
            f"the student '{ref}' was trained with another VGGish than '{extractor.ref}'; put that one in its place"
        )
    return extractor


def _classes(student: Student, vocabulary: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the class names, background first."""
    own = tuple(getattr(student.config, "classes", ()))
    if vocabulary is None:
        return own or None
    classes = (BACKGROUND, *vocabulary)
    student.check("open-vocabulary", classes)
    return classes


def student_predictor(recipe: Recipe, dataset: Dataset) -> Predictor:
    """Return a student as a `Predictor`; for binary masks its predictions are probabilities."""
    binary = dataset.task == "binary"
    fit = recipe if binary else recipe_from_dict({**recipe.to_dict(), "vocabulary": list(dataset.classes[1:])})
    assert fit.student is not None
    load_student(fit.student.model, fit.offline).check(dataset.task, dataset.classes)

    def build() -> Any:
        chain = StudentPipeline.from_recipe(fit)
        return chain.soft if binary else chain

    builder = f"{__name__}:build_soft_student" if binary else STUDENT_BUILDER
    labels = () if binary else dataset.classes
    return Predictor(fit.to_dict(), build, labels, soft=binary, base=recipe.base, builder=builder)


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
