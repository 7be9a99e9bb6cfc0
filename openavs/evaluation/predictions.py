"""Predicted masks of a split on disk: their layout, the missing ones, and files that belong to no clip.

Masks have the layout of the ground truth or of the published scripts. The scripts leave out leading folders (the split
of S4 and MS3, the subset of AVSBench-semantic), name the masks of AVSS `<uid>_<k>.png`, and number the masks of S4 and
MS3 from 0. Folders and names are recognized. Another numbering must be given, because a wrong guess would score every
frame against its neighbor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from openavs.errors import InputError
from openavs.evaluation.datasets.base import (
    LABELS_FOLDER,
    BenchmarkClip,
    Dataset,
    LazyClips,
    Masks,
    prediction_exists,
    prediction_folder,
)

PredictionReader = Callable[[BenchmarkClip, Path], Masks | None]


def labels_folder(folder: Path) -> Path:
    """Return the masks' folder: `predictions` of an evaluation, `labels` of a label job, or the folder itself."""
    return next((folder / name for name in ("predictions", "labels") if (folder / name).is_dir()), folder)


def read_predictions(
    dataset: Dataset,
    clip: BenchmarkClip,
    folder: Path,
    truth: Masks,
    absent: frozenset[int],
    read: PredictionReader | None = None,
) -> Masks:
    """Read a clip's predictions `[T, H, W]`, with empty masks for the frames in `absent`.

    `truth` gives the shape, `absent` is as in `MissingPredictions.frames`, and `read` replaces
    `dataset.read_prediction`.
    """
    read = read or dataset.read_prediction

    def read_existing(clip: BenchmarkClip) -> Masks:
        predicted = read(clip, folder)
        if predicted is None:
            raise InputError(f"the reader of {dataset.benchmark} finds no prediction of clip {clip.id} below {folder}")
        return predicted

    if not absent:
        return read_existing(clip)
    masks: Masks = np.zeros(truth.shape, dtype=np.uint8)  # background
    existing = [row for row, frame in enumerate(clip.annotated) if frame not in absent]
    if existing:
        kept = tuple(None if frame in absent else path for frame, path in enumerate(clip.truth))
        masks[existing] = read_existing(replace(clip, truth=kept))
    return masks


# ------------------------------------------------------------------------------------------------ missing and extra


@dataclass(frozen=True)
class MissingPredictions:
    """The annotated frames of each clip (by id) without a predicted mask, and the first such file."""

    frames: dict[str, frozenset[int]]
    first: Path | None = None

    @property
    def masks(self) -> int:
        """The number of missing masks."""
        return sum(map(len, self.frames.values()))


def find_missing(clips: Sequence[BenchmarkClip], folder: Path) -> MissingPredictions:
    """Find the predictions that do not exist, without reading any.

    Raises:
        InputError: `folder` does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder of predictions {folder}; check --predictions")
    found: dict[str, frozenset[int]] = {}
    first: Path | None = None
    for clip in clips:
        if absent := [i for i in clip.annotated if not prediction_exists(folder / clip.predictions[i])]:
            found[clip.id] = frozenset(absent)
            first = first or folder / clip.predictions[absent[0]]
    return MissingPredictions(found, first)


def check_complete(missing: MissingPredictions, clips: Sequence[BenchmarkClip]) -> None:
    """Raise InputError if any prediction is missing, with their number and the first."""
    if missing.frames:
        masks = sum(len(clip.annotated) for clip in clips)
        raise InputError(
            f"{missing.masks:,} of {masks:,} predicted masks are missing, in {len(missing.frames):,} of "
            f"{len(clips):,} clips (first: {missing.first}); write them, or count them as empty with --allow-missing"
        )


def extra_predictions(dataset: Dataset, folder: Path) -> list[str]:
    """List the folders and PNG files beside the predictions that belong to no clip of the split.

    PNG files in a clip's folder that belong to none of its frames are included. Paths are relative to `folder` and
    sorted. A misspelled clip shows up here and as a missing one.
    """
    known = {prediction_folder(clip) for clip in dataset.clips}
    depth = max((len(path.parts) for path in known), default=1)
    found = {path.as_posix() for path in _unknown(folder, Path(), depth, known)}
    return sorted(found.union(*(_strays(clip, folder) for clip in dataset.clips)))


def _strays(clip: BenchmarkClip, folder: Path) -> set[str]:
    """PNG files in a clip's folder that belong to none of its frames."""
    expected = {Path(path).name for path in clip.predictions}
    home = prediction_folder(clip)
    places = [place for place in (home, home / LABELS_FOLDER) if (folder / place).is_dir()]
    entries = [(place / name).as_posix() for place in places for name in os.listdir(folder / place)]
    return {path for path in entries if path.lower().endswith(".png") and Path(path).name not in expected}


def _unknown(folder: Path, below: Path, depth: int, known: set[Path]) -> list[Path]:
    """Folders and PNG files, `depth` levels deep, that are not in `known`."""
    found: list[Path] = []
    for entry in (folder / below).iterdir() if (folder / below).is_dir() else ():
        path = below / entry.name
        if entry.is_dir() and depth > 1:
            found += _unknown(folder, path, depth - 1, known)
        elif path not in known and (entry.is_dir() or entry.suffix.lower() == ".png"):
            found.append(path)
    return found


# --------------------------------------------------------------------------------------------------------- layouts


@dataclass(frozen=True)
class PredictionLayout:
    """Naming of masks: leading folders left out, `<id>_<k>.png` or `<k>.png`, and the number of the first frame."""

    dropped: int
    with_id: bool
    first: int

    def path(self, clip: BenchmarkClip, frame: int) -> str:
        """Return the path of a frame's mask; `frame` may be outside the clip."""
        name = f"{clip.id}_{self.first + frame}.png" if self.with_id else f"{self.first + frame}.png"
        return Path(*Path(clip.predictions[0]).parent.parts[self.dropped :], name).as_posix()

    def apply(self, clip: BenchmarkClip) -> BenchmarkClip:
        """Return the clip with this layout's paths as its predictions."""
        return replace(clip, predictions=tuple(self.path(clip, frame) for frame in range(len(clip.predictions))))


def locate_predictions(
    dataset: Dataset, folder: Path, *, numbering: int | None = None, resize: bool = False
) -> Dataset:
    """Return the data set with its predictions' paths as they are in `folder`.

    Args:
        dataset: the split.
        folder: the folder of predictions.
        numbering: the number of the first frame in file names; None means that of the benchmark.
        resize: accept masks of another size than the benchmark's, and resize them to the nearest pixel.

    Raises:
        InputError: masks that seem to be numbered from another number, without `numbering`.
    """
    clips = dataset.clips
    own = _own_layout(clips[0]) if len(clips) else None
    if own is not None:
        found = next((layout for clip in clips for layout in _existing_layouts(clip, own, folder)), own)
        if numbering is None:
            _check_numbering(dataset, found, folder)
        else:
            found = replace(found, first=numbering)
        clips = clips if found == own else _changed(clips, found.apply)
    elif numbering is not None:
        raise InputError(f"the masks of {dataset.benchmark} are not named by numbers; leave --numbering out")
    if resize:
        clips = _changed(clips, lambda clip: replace(clip, resize=True))
    return replace(dataset, clips=clips)


def _own_layout(clip: BenchmarkClip) -> PredictionLayout | None:
    """The benchmark's own layout; None unless its masks are named `<k>.png` or `<id>_<k>.png`, from 0 or 1."""
    layouts = (PredictionLayout(0, with_id, first) for with_id in (False, True) for first in (0, 1))
    return next((layout for layout in layouts if layout.apply(clip) == clip), None)


def _existing_layouts(clip: BenchmarkClip, own: PredictionLayout, folder: Path) -> Iterator[PredictionLayout]:
    """The layouts in which any mask of the clip exists, the benchmark's own first; numbers may be off by one."""
    frames = range(-1, len(clip.predictions) + 1)
    for dropped in range(len(prediction_folder(clip).parts)):
        for with_id in (own.with_id, not own.with_id):
            layout = PredictionLayout(dropped, with_id, own.first)
            if any(prediction_exists(folder / layout.path(clip, frame)) for frame in frames):
                yield layout


def _check_numbering(dataset: Dataset, layout: PredictionLayout, folder: Path) -> None:
    """Raises for an additional frame before the first (or after the last) with the one at the other end missing."""
    for clip in dataset.clips:
        end = len(clip.predictions)
        for outside, inside, start in ((-1, end - 1, layout.first - 1), (end, 0, layout.first + 1)):
            extra, absent = (layout.path(clip, frame) for frame in (outside, inside))
            if prediction_exists(folder / extra) and not prediction_exists(folder / absent):
                raise InputError(
                    f"{folder} holds {extra} and not {absent}: are its masks numbered from {start}? "
                    f"{dataset.benchmark} counts from {layout.first}; pass --numbering {start}, or --numbering "
                    f"{layout.first} if they are numbered from {layout.first}"
                )


def _changed(clips: Sequence[BenchmarkClip], change: Callable[[BenchmarkClip], BenchmarkClip]) -> LazyClips:
    """The clips, each changed on access."""
    return LazyClips(range(len(clips)), lambda index: change(clips[index]))
