"""Frame deduplication: repeated frames share one array, and a stage runs once for each array.

Slides with a voice, logos and paused recordings repeat their frames bit for bit. `FrameDeduplicator` gives a repeated
frame the array of its first appearance. `FrameMemo` then calls a stage once per array and question.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from openavs.models.memory import run_with_oom_backoff
from openavs.stages.contracts import validate_outputs
from openavs.structures.types import Frame, ImageArray

T = TypeVar("T")

CELLS = 32
"""Rows and columns of the grid in which two frames are compared; an object of a thousandth of the area fills a cell."""


def max_cell_difference(one: ImageArray, two: ImageArray) -> float:
    """Return the mean absolute difference within the grid cell that changed most, in gray levels [0, 255].

    The maximum over `CELLS` x `CELLS` cells, because the mean of the whole frame hides a small object that moves; the
    mean within a cell, because noise and compression make the maximum of single pixels large everywhere. Frames of
    different sizes differ by 255.
    """
    if one.shape != two.shape:
        return 255.0
    difference = np.maximum(one, two) - np.minimum(one, two)
    edges = [np.unique(np.linspace(0, n, min(CELLS, n) + 1).astype(int)) for n in difference.shape[:2]]
    sums = np.add.reduceat(difference.sum(axis=2, dtype=np.uint32), edges[0][:-1], axis=0)
    sums = np.add.reduceat(sums, edges[1][:-1], axis=1)
    areas = np.outer(np.diff(edges[0]), np.diff(edges[1]))
    return float((sums / (3 * areas)).max())


class FrameDeduplicator:
    """Replaces the array of a frame that repeats the frame before it.

    Args:
        max_diff: the largest `max_cell_difference` of a repetition: 0 for the same bits, None to disable. A frame is
            compared with the first of its run, not with its neighbor, so that a slow change does not go unnoticed.

    Attributes:
        near: number of frames that were replaced although their bits differ.
    """

    def __init__(self, max_diff: float | None = 0.0) -> None:
        self.max_diff = max_diff
        self.near = 0

    def share(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Yield the frames in order, repeated ones with the array of the first."""
        last: ImageArray | None = None
        for frame in frames:
            if last is not None and self._is_repeated(last, frame.image):
                yield replace(frame, image=last)
            else:
                last = frame.image
                yield frame

    def _is_repeated(self, last: ImageArray, image: ImageArray) -> bool:
        if last is image or self.max_diff is None:
            return last is image
        if _is_equal(last, image):
            return True
        close = self.max_diff > 0 and max_cell_difference(last, image) <= self.max_diff
        self.near += close
        return close


class FrameMemo:
    """Memoizes stage outputs by the frame's array.

    Entries live for two batches, because repetitions are consecutive.
    """

    def __init__(self) -> None:
        self._images: list[ImageArray] = []
        self._last: list[ImageArray] = []  # kept alive, so that no other array gets its id
        self._outputs: dict[tuple[Hashable, ...], Any] = {}

    def begin(self, images: Sequence[ImageArray]) -> None:
        """Start a batch; outputs for all but the last image of the batch before are dropped."""
        self._last, self._images = self._images[-1:], list(images)
        last = [id(image) for image in self._last]
        self._outputs = {key: output for key, output in self._outputs.items() if key[1] in last}

    def call(self, function: Callable[..., list[T]], *parallel: Sequence[Sequence[Hashable]]) -> list[T]:
        """Return `function(images, *parallel)`, computed for those images of the batch that have no entry yet.

        Args:
            function: a stage's method; it takes a list of images and sequences parallel to it.
            parallel: one sequence of hashable items per image of the batch, such as its phrases.
        """
        images = self._images
        keys = [(function.__name__, id(image), *map(tuple, own)) for image, *own in zip(images, *parallel, strict=True)]
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._outputs}
        places = sorted(new.values())
        if places:
            some = [images[i] for i in places]
            outputs = run_with_oom_backoff(function, some, *([own[i] for i in places] for own in parallel))
            validate_outputs(function.__name__, outputs, [image.shape[:2] for image in some])
            self._outputs |= {keys[i]: output for i, output in zip(places, outputs, strict=True)}
        return [self._outputs[key] for key in keys]


def _is_equal(one: ImageArray, two: ImageArray) -> bool:
    """Compare bit for bit; a few rows first, since most frames differ everywhere."""
    return one.shape == two.shape and np.array_equal(one[::64], two[::64]) and np.array_equal(one, two)
