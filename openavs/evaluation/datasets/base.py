"""What a benchmark is to everything that uses one: clips with frames, a sound, masks and places for predictions.

A reader (one function per layout) turns a folder as released into a `Dataset`; nothing after it knows the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

Task = Literal["binary", "semantic", "open-vocabulary"]
"""What is scored: J and F of binary masks, AVSS's per-class means, AVSBench-OV's base, novel and harmonic."""

Masks = npt.NDArray[Any]
"""Masks of one clip `[T, H, W]`: bool where the task is binary, else class indices."""


@dataclass(frozen=True)
class BenchmarkClip:
    """One clip of a split, by its files; nothing is read before it is asked for.

    `classes` are AVSBench class names of what sounds in it as far as its metadata tells (empty where it does not);
    `group` is the row it falls into in tables (an S4 category, a subset of AVSBench-semantic) and `truth` the mask file
    of each frame, None for frames without one. `predictions` are the paths, below a folder of predictions and in the
    layout of the ground truth, of each frame's mask; with `resize` masks of another size than the benchmark's are
    resized instead of refused.
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
        """The frames that have a mask."""
        return tuple(i for i, path in enumerate(self.truth) if path is not None)


class LazyClips(Sequence[BenchmarkClip]):
    """The clips of a split, each made from its row of metadata when it is asked for.

    A clip's paths take several kB: kept for all, they would be most of what scoring a large split holds in memory.
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

    `read_truth(clip)` gives the masks of the clip's annotated frames, `read_prediction(clip, folder)` those that a
    system wrote for the same frames, both as the benchmark's protocol compares them: the same `[T, H, W]`, truth bool
    (binary) or class indices, predictions uint8 probabilities (value / 255) or class indices. `read_prediction` returns
    None for a clip of which nothing is there. Both raise InputError for a file that is not what the layout says.
    `read_native` gives the truth at the size it is stored in, for training; None where `read_truth` does already.
    `read_published` gives the predictions as the published code samples them, for the `official` figures; None where
    these are the masks of `read_prediction`. `incomparable` says why figures on it do not compare with published ones;
    None where nothing is known against it.
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
    """What a missing prediction counts as: nothing marked, no class but the background."""
    return np.zeros(truth.shape, dtype=np.uint8)
