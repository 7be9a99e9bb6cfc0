"""A student's prediction of a clip as everything else in openavs takes it: maps for scoring, segments, grey values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow

from openavs.evaluation.datasets.base import BenchmarkClip
from openavs.media.log_mel import Floats
from openavs.structures.types import BoolMask, FrameResult, ImageArray, Segment, mask_to_rle
from openavs.training.base import InstanceMask, Size, Student, StudentPrediction
from openavs.training.data.dataset import batches_to_predict

BINARY_PHRASE = "sounding object"
Grey = npt.NDArray[np.uint8]


def predict_clip(
    student: Student, name: str, images: Sequence[ImageArray], audio: Floats, classes: Sequence[str] | None
) -> StudentPrediction:
    """A whole clip, run of frames by run of frames; `classes` as in `Student.predict`."""
    device = next(student.parameters()).device
    with torch.no_grad():
        batches = batches_to_predict(name, images, audio, student.view(training=False))
        return joined([student.predict(batch.to(device), classes)[0] for batch in batches])


def joined(parts: Sequence[StudentPrediction]) -> StudentPrediction:
    """Predictions one after the other, as one."""
    frames = tuple(frame for part in numbered_on(parts) for frame in part.frames)
    shares = [part.probability for part in parts if part.probability is not None]
    return StudentPrediction(frames, np.concatenate(shares) if shares else None)


def numbered_on(parts: Iterable[StudentPrediction]) -> Iterator[StudentPrediction]:
    """Predictions one after the other, their tracks numbered on: a number of one part is nothing of the next."""
    taken = 0
    for part in parts:
        tracks = [found.track for frame in part.frames for found in frame if found.track is not None]
        frames = (
            tuple(f if f.track is None else replace(f, track=f.track + taken) for f in frame) for frame in part.frames
        )
        yield replace(part, frames=tuple(frames))
        taken += max(tracks, default=-1) + 1


def grey_values(prediction: StudentPrediction, size: Size) -> Grey:
    """Probabilities times 255, `[T, *size]`; of a student that gives none, its masks as 0 and 255."""
    if prediction.probability is not None:
        shares = np.rint(prediction.probability * 255.0).astype(np.uint8)
        return np.stack([nearest(share, size) for share in shares])
    unions = [_union(found, size) for found in prediction.frames]
    return np.stack(unions).astype(np.uint8) * np.uint8(255)


def label_maps(prediction: StudentPrediction, index: Mapping[str, int], size: Size) -> Grey:
    """Class indices `[T, *size]`: the highest score on top; names that `index` has not are not painted."""
    maps = []
    for frame in prediction.frames:
        painted = np.zeros(size, dtype=np.uint8)
        for found in sorted(frame, key=lambda found: found.score):
            if found.label is not None and found.label in index:
                painted[nearest(found.mask, size)] = index[found.label]
        maps.append(painted)
    return np.stack(maps)


def scored_maps(
    prediction: StudentPrediction, clip: BenchmarkClip, classes: Sequence[str] | None, size: Size
) -> npt.NDArray[Any]:
    """What a tally takes for the annotated frames of a clip."""
    if classes is None:
        return grey_values(prediction, size)[list(clip.annotated)]
    return label_maps(prediction, {name: i for i, name in enumerate(classes)}, size)[list(clip.annotated)]


def frame_results(prediction: StudentPrediction, indices: range, times: Sequence[float]) -> list[FrameResult]:
    """The masks as segments, of those frames of a clip. A student hears and asks nothing in words, so only they are
    told."""
    return [
        FrameResult(index, times[index], segments=tuple(_segment(found) for found in frame if found.mask.any()))
        for index, frame in zip(indices, prediction.frames, strict=True)
    ]


def nearest(mask: npt.NDArray[Any], size: Size) -> npt.NDArray[Any]:
    """A mask at another size, by the nearest pixel."""
    if mask.shape == size:
        return mask
    return np.asarray(Pillow.fromarray(mask).resize((size[1], size[0]), Pillow.Resampling.NEAREST))


def _union(found: Sequence[InstanceMask], size: Size) -> BoolMask:
    union = np.zeros(size, dtype=np.bool_)
    for one in found:
        union |= nearest(one.mask, size)
    return union


def _segment(found: InstanceMask) -> Segment:
    rows, columns = np.flatnonzero(found.mask.any(axis=1)), np.flatnonzero(found.mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    how = None if found.label is None else "exact"
    score = min(max(found.score, 0.0), 1.0)
    phrase = found.label or BINARY_PHRASE
    return Segment(mask_to_rle(found.mask), box, phrase, score, None, found.label, how, found.track)
