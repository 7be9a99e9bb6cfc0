"""Pictures of single clips for a benchmark's page: a frame with the truth outlined and the prediction filled in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pictures

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.predictions import find_missing, read_predictions
from openavs.media.images import read_image
from openavs.structures.types import BoolMask, ImageArray
from openavs.visualization.html import jpeg_data_uri

WIDEST = 320  # pixels
RIGHT, WRONG = (0, 114, 178), (230, 159, 0)
_TINT = 0.65  # share of the colour inside a mask

Labels = npt.NDArray[Any]


@dataclass(frozen=True)
class ReportFrames:
    """One frame of a clip: the picture as a data address and what it shows in words; without `src`, why it is not."""

    words: str
    src: str | None = None
    width: int = 0
    height: int = 0


def clip_picture(dataset: Dataset, clip: BenchmarkClip, predictions: Path) -> ReportFrames:
    """The frame in which truth and prediction together cover most, so that there is something to see.

    Marked pixels are blue where the truth agrees (label maps: in the class) and orange where it does not; the truth has
    a white outline. A picture that cannot be made is no reason to lose the page: the words then say why.
    """
    try:
        truth = dataset.read_truth(clip)
        absent = find_missing([clip], predictions).frames.get(clip.id, frozenset())
        predicted = _labels(dataset, read_predictions(dataset, clip, predictions, truth, absent))
        place = int(np.argmax([(t > 0).sum() + (p > 0).sum() for t, p in zip(truth, predicted, strict=True)]))
        index = clip.annotated[place]
        image = _small(read_image(clip.frames[index]))
    except (InputError, OSError) as problem:
        return ReportFrames(f"no picture: {problem}")
    true, marked = truth[place].astype(np.int64), predicted[place].astype(np.int64)
    words = f"Frame {index + 1} of {len(clip.frames)}: {_words(dataset, true, marked)}"
    painted = paint_masks(image, *(_at(labels, image.shape[:2]) for labels in (true, marked)))
    return ReportFrames(words, jpeg_data_uri(painted, 80), image.shape[1], image.shape[0])


def paint_masks(image: ImageArray, truth: Labels, predicted: Labels) -> ImageArray:
    """The picture `[H, W, 3]` with label maps `[H, W]` (0 is nothing) painted on it."""
    painted = image.copy()
    hit = (predicted > 0) & (predicted == truth)
    for mask, colour in ((hit, RIGHT), ((predicted > 0) & ~hit, WRONG)):
        tone = np.array(colour, dtype=np.float32)
        painted[mask] = (painted[mask] * (1 - _TINT) + tone * _TINT).astype(np.uint8)
    edge = _edges(truth)
    painted[edge & (truth == 0)] = 0  # a dark rim, to be seen on white things too
    painted[edge & (truth > 0)] = 255
    return painted


def _labels(dataset: Dataset, predicted: Labels) -> Labels:
    return (predicted > 127).astype(np.uint8) if dataset.task == "binary" else predicted


def _small(image: ImageArray) -> ImageArray:
    scale = min(1.0, WIDEST / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(Pictures.fromarray(image).resize(size, Pictures.Resampling.BILINEAR)).copy()


def _at(labels: Labels, size: tuple[int, ...]) -> Labels:
    """A label map at another size; benchmarks compare masks at sizes that are not the frame's."""
    picture = Pictures.fromarray(labels.astype(np.int32))
    return np.asarray(picture.resize((size[1], size[0]), Pictures.Resampling.NEAREST))


def _edges(labels: Labels) -> BoolMask:
    """The pixels on both sides of every border between labels."""
    edge = np.zeros(labels.shape, dtype=np.bool_)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge


def _words(dataset: Dataset, true: Labels, marked: Labels) -> str:
    if dataset.task != "binary":
        return f"truth {_names(dataset, true)}; prediction {_names(dataset, marked)}"
    return f"truth covers {100 * (true > 0).mean():.1f} %, prediction {100 * (marked > 0).mean():.1f} % of the frame"


def _names(dataset: Dataset, labels: Labels) -> str:
    found = [int(label) for label in np.unique(labels) if label > 0]
    known = [dataset.classes[label] if label < len(dataset.classes) else str(label) for label in found]
    return ", ".join(known) or "nothing"
