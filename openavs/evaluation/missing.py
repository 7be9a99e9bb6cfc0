"""Predictions that are not there: which, and what they count as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, Masks, empty_prediction
from openavs.evaluation.predictions import is_there

Reader = Callable[[BenchmarkClip, Path], Masks | None]


@dataclass(frozen=True)
class MissingPredictions:
    """The annotated frames of each clip (by id) that have no predicted mask, and the first such file."""

    frames: dict[str, frozenset[int]]
    first: Path | None = None

    @property
    def masks(self) -> int:
        """How many masks are missing in all."""
        return sum(map(len, self.frames.values()))


def find_missing(clips: Sequence[BenchmarkClip], folder: Path) -> MissingPredictions:
    """Looks for the predictions of all clips by name, without reading any.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder of predictions {folder}; check --predictions")
    found: dict[str, frozenset[int]] = {}
    first: Path | None = None
    for clip in clips:
        if absent := [i for i in clip.annotated if not is_there(folder / clip.predictions[i])]:
            found[clip.id] = frozenset(absent)
            first = first or folder / clip.predictions[absent[0]]
    return MissingPredictions(found, first)


def refuse_missing(missing: MissingPredictions, clips: Sequence[BenchmarkClip]) -> None:
    """Raises InputError, with how many are missing and the first, if any are."""
    if missing.frames:
        masks = sum(len(clip.annotated) for clip in clips)
        raise InputError(
            f"{missing.masks:,} of {masks:,} predicted masks are missing, in {len(missing.frames):,} of "
            f"{len(clips):,} clips (first: {missing.first}); write them, or count them as empty with --allow-missing"
        )


def read_present(
    dataset: Dataset,
    clip: BenchmarkClip,
    folder: Path,
    truth: Masks,
    absent: frozenset[int],
    read: Reader | None = None,
) -> Masks:
    """Return the clip's predictions `[T, H, W]`, with empty masks where they are missing.

    `read` is the data set's `read_prediction` unless another is given.
    """
    read = read or dataset.read_prediction
    if not absent:
        return _read(dataset, read, clip, folder)
    whole = empty_prediction(truth)
    there = [row for row, frame in enumerate(clip.annotated) if frame not in absent]
    if there:
        kept = tuple(None if frame in absent else path for frame, path in enumerate(clip.truth))
        whole[there] = _read(dataset, read, replace(clip, truth=kept), folder)
    return whole


def _read(dataset: Dataset, read: Reader, clip: BenchmarkClip, folder: Path) -> Masks:
    predicted = read(clip, folder)
    if predicted is None:
        raise InputError(f"the reader of {dataset.benchmark} finds no prediction of clip {clip.id} below {folder}")
    return predicted
