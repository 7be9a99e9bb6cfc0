"""Benchmark data: clips with frames, audio, ground-truth masks and paths for predictions.

A reader (one function per layout) turns the released folder into a `Dataset`; no other code depends on the layout.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.structures.masks import RLE
from openavs.structures.types import BoolMask

Task = Literal["binary", "semantic", "open-vocabulary", "instances"]
"""The kind of metrics: J and F of binary masks, the per-class means of AVSS, base, novel and harmonic of OV, or HOTA,
TrackMAP and FSLA of tracks."""

Masks = npt.NDArray[Any]
"""Masks of one clip `[T, H, W]`: bool for binary tasks, else class indices."""


@dataclass(frozen=True)
class BenchmarkClip:
    """Paths of one clip of a split; no file is read.

    Attributes:
        frames, audio: the image files and the audio file.
        truth: the mask file of each frame, None for frames without one.
        predictions: the path of each frame's predicted mask, relative to a folder of predictions and in the layout of
            the ground truth.
        classes: names of the sounding AVSBench classes; empty if the metadata has none.
        group: the row of the clip in tables (an S4 category, a subset of AVSBench-semantic).
        resize: resize predicted masks of another size than the benchmark's, instead of raising an error.
        video: the raw video, if there is one; the frames between the sampled ones are decoded from it.
        sound: a generated sound in place of the audio file, as `media.replacement_sound` names it.
        expression: a sentence that chooses the objects to segment, for benchmarks of such sentences.
        times: reads the times of the frames in seconds, for clips without `frames`: they are decoded from the video.
    """

    id: str
    split: str
    frames: tuple[Path, ...]
    audio: Path
    truth: tuple[Path | None, ...]
    predictions: tuple[str, ...]
    classes: tuple[str, ...] = ()
    group: str | None = None
    resize: bool = False
    video: Path | None = None
    sound: str | None = None
    expression: str | None = None
    times: Callable[[], tuple[float, ...]] | None = None

    @property
    def annotated(self) -> tuple[int, ...]:
        """The indices of the frames with a ground-truth mask."""
        return tuple(i for i, path in enumerate(self.truth) if path is not None)


@dataclass(frozen=True, eq=False)
class Instances:
    """The instances of a clip's annotated frames, for benchmarks of several of a kind.

    Attributes:
        maps: instance maps uint8 `[T, H, W]`; 0 is the background, i is instance i of N.
        twins: bool `[N]`, the visible instances of the kind that sounds.
        sounding: bool `[T, N]`, the instances that sound at a frame, in the picture or not.
    """

    maps: npt.NDArray[np.uint8]
    twins: BoolMask
    sounding: BoolMask


@dataclass(frozen=True, eq=False)
class InstanceTrack:
    """One true or predicted instance of a clip.

    Attributes:
        category: the index of its class; 0 is the background.
        masks: one entry per frame of the clip, None without a mask.
        score: the confidence of a prediction.
        id: the number of a true track in its file.
        mean_area: mean area of a true track's masks in pixels, as its file states it.
        crowd: true for a track that predictions need not find.
    """

    category: int
    masks: tuple[RLE | None, ...]
    score: float = 1.0
    id: int = 0
    mean_area: float = 0.0
    crowd: bool = False


@dataclass(frozen=True)
class TrackVideo:
    """The number of a clip in prediction files, (height, width) of its masks, and its number of frames."""

    number: int
    size: tuple[int, int]
    frames: int


@dataclass(frozen=True)
class TrackLayout:
    """The clips by id, and the number of each class in prediction files, in index order; 0 for the background."""

    videos: Mapping[str, TrackVideo]
    categories: tuple[int, ...]


class LazyClips(Sequence[BenchmarkClip]):
    """The clips of a split, each created from its row of metadata on access.

    The paths of a clip take several kB, which for all clips of a large split would be most of the memory of scoring.
    """

    def __init__(self, rows: Sequence[Any], make: Callable[[Any], BenchmarkClip]) -> None:
        self._rows, self._make = rows, make

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> BenchmarkClip: ...
    @overload
    def __getitem__(self, index: slice) -> LazyClips: ...
    def __getitem__(self, index: int | slice) -> BenchmarkClip | LazyClips:
        if isinstance(index, slice):
            return LazyClips(self._rows[index], self._make)
        return self._make(self._rows[index])


@dataclass(frozen=True)
class Dataset:
    """One split of a benchmark, in the order of its metadata.

    The readers raise InputError for a file that does not match the layout.

    Attributes:
        clips: the clips, often lazy.
        read_truth: reads the masks of a clip's annotated frames, as the protocol compares them: `[T, H, W]`, bool
            (binary) or class indices.
        read_prediction: reads the predicted masks of the same frames below a folder, in the same shape: uint8
            probabilities (value / 255) or class indices. None without any file of the clip.
        classes: class names of label maps in index order.
        read_native: reads the truth at its stored size, for training; None if `read_truth` does.
        read_published: reads the predictions as the published code samples them, for the `official` figures; None if
            `read_prediction` does.
        incomparable: the reason that figures do not compare with published ones, if known.
        read_instances: reads the instances of a clip's annotated frames, for the metrics of `metrics/twins.py`; None
            if the benchmark has none.
        read_tracks: reads the true tracks of a clip, for the task `instances`.
        make_metric: makes the metric for a number of clips per batch; None for that of the task.
        clips_per_batch: the batch of the published evaluation.
        track_layout: the numbers that prediction files of tracks use.
    """

    benchmark: str
    task: Task
    root: Path
    split: str
    clips: Sequence[BenchmarkClip]
    read_truth: Callable[[BenchmarkClip], Masks]
    read_prediction: Callable[[BenchmarkClip, Path], Masks | None]
    classes: tuple[str, ...] = ()
    read_native: Callable[[BenchmarkClip], Masks] | None = None
    read_published: Callable[[BenchmarkClip, Path], Masks | None] | None = None
    incomparable: str | None = None
    read_instances: Callable[[BenchmarkClip], Instances] | None = None
    read_tracks: Callable[[BenchmarkClip], list[InstanceTrack]] | None = None
    make_metric: Callable[[int], Any] | None = None
    clips_per_batch: int = 1
    track_layout: TrackLayout | None = None


# ----------------------------------------------------------------------------------------------- prediction files

LABELS_FOLDER = "labels_semantic"  # optional in a prediction's path


def prediction_folder(clip: BenchmarkClip) -> Path:
    """Return the folder of a clip's predictions, without the folder of labels."""
    return without_labels_folder(Path(clip.predictions[0])).parent


def without_labels_folder(path: Path) -> Path:
    """Return the other allowed path of a predicted label map, in the clip's folder itself."""
    return path.parent.parent / path.name if path.parent.name == LABELS_FOLDER else path


def prediction_exists(path: Path) -> bool:
    """Whether a predicted mask exists, with or without the folder of labels."""
    return os.path.isfile(path) or os.path.isfile(without_labels_folder(path))


def find_predictions(clip: BenchmarkClip, folder: Path) -> list[Path] | None:
    """Return the predicted mask of each annotated frame; None without any file of the clip.

    Raises:
        InputError: no such folder, or a clip's folder that lacks the mask of an annotated frame.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of predictions")
    wanted = [folder / clip.predictions[i] for i in clip.annotated]
    for paths in (wanted, [without_labels_folder(path) for path in wanted]):
        home = paths[0].parent
        if not home.is_dir() or not any(entry.is_file() for entry in home.iterdir()):
            continue
        for path in paths:
            if not path.is_file():
                raise InputError(f"the prediction {path} is missing, though other files of the clip exist")
        return paths
    return None


# -------------------------------------------------------------------------------------- clips of the synthetic world

_SYNTHETIC_NAME = re.compile(r"(null_c-)?(tr|va|te)\d{3}w\d{5}(_|$)")


def synthetic_clip_name(split: str, seed: int, index: int) -> str:
    """Return the name of a clip of the synthetic world: 11 characters, like an id of YouTube."""
    return f"{split[:2]}{seed:03d}w{index:05d}"


def is_synthetic(clip_id: str) -> bool:
    """Whether a clip's id begins with a name from `synthetic_clip_name`; layouts append a start or a length."""
    return _SYNTHETIC_NAME.match(clip_id) is not None
