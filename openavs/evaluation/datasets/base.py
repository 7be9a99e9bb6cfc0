"""Benchmark data: clips with frames, audio, ground-truth masks and paths for predictions.

A reader (one function per layout) turns the released folder into a `Dataset`; no other code depends on the layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

Task = Literal["binary", "semantic", "open-vocabulary"]
"""The kind of metrics: J and F of binary masks, the per-class means of AVSS, or base, novel and harmonic of OV."""

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

    @property
    def annotated(self) -> tuple[int, ...]:
        """The indices of the frames with a ground-truth mask."""
        return tuple(i for i, path in enumerate(self.truth) if path is not None)


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


def empty_prediction(truth: Masks) -> npt.NDArray[np.uint8]:
    """Return the masks that a missing prediction counts as: all background."""
    return np.zeros(truth.shape, dtype=np.uint8)


# -------------------------------------------------------------------------------------- clips of the synthetic world

_SYNTHETIC_NAME = re.compile(r"(tr|va|te)\d{3}w\d{5}(_|$)")


def synthetic_clip_name(split: str, seed: int, index: int) -> str:
    """Return the name of a clip of the synthetic world: 11 characters, like an id of YouTube."""
    return f"{split[:2]}{seed:03d}w{index:05d}"


def is_synthetic(clip_id: str) -> bool:
    """Whether a clip's id begins with a name from `synthetic_clip_name`; layouts append a start or a length."""
    return _SYNTHETIC_NAME.match(clip_id) is not None
