"""What did not change is not computed again: pictures that repeat, and what the stages said of them.

A slide with a voice over it, a logo, a paused recording: such videos repeat their pictures bit for bit, and a model's
answer to the same picture and the same question is the same. So a repeated picture travels as the very array of its
first appearance (`Pictures`), by which everything that remembers per picture knows it, and a stage is asked about an
array once (`Answers`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from openavs.models.oom import run_with_oom_backoff
from openavs.pipeline.validation import validate_outputs
from openavs.structures.types import Frame, ImageArray

T = TypeVar("T")

CELLS = 32
"""A picture is compared in so many rows and columns of cells: a thing of a thousandth of its area fills one."""


def max_cell_difference(one: ImageArray, two: ImageArray) -> float:
    """How much of a picture changed: the mean absolute difference within the cell that changed most, in [0, 255].

    The greatest of `CELLS` x `CELLS` cells and not the mean of all, in which a small thing that moves would be lost;
    a mean within the cell and not the greatest difference of a pixel, which noise and compression make large
    everywhere. Pictures of different sizes differ by 255.
    """
    if one.shape != two.shape:
        return 255.0
    apart = np.maximum(one, two) - np.minimum(one, two)
    edges = [np.unique(np.linspace(0, n, min(CELLS, n) + 1).astype(int)) for n in apart.shape[:2]]
    sums = np.add.reduceat(apart.sum(axis=2, dtype=np.uint32), edges[0][:-1], axis=0)
    sums = np.add.reduceat(sums, edges[1][:-1], axis=1)
    areas = np.outer(np.diff(edges[0]), np.diff(edges[1]))
    return float((sums / (3 * areas)).max())


class FrameDeduplicator:
    """Gives a frame that repeats the picture before it the very array of that one.

    `max_diff` is what counts as a repetition, as a `change`: 0: the same bits; more: at most so much changed against
    the picture that was looked at (not against the one before, along which a slow change would creep); None: nothing.
    `near` counts the frames that were not quite the same.
    """

    def __init__(self, max_diff: float | None = 0.0) -> None:
        self.max_diff = max_diff
        self.near = 0

    def shared(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames in their order; a generator, to be run where they are decoded."""
        last: ImageArray | None = None
        for frame in frames:
            if last is not None and self._is(last, frame.image):
                yield replace(frame, image=last)
            else:
                last = frame.image
                yield frame

    def _is(self, last: ImageArray, image: ImageArray) -> bool:
        if last is image or self.max_diff is None:
            return last is image
        if _same(last, image):
            return True
        close = self.max_diff > 0 and max_cell_difference(last, image) <= self.max_diff
        self.near += close
        return close


class FrameMemo:
    """What stages said of the arrays of one clip. It is remembered until the batch after the next begins, and so costs
    no memory to speak of; what repeats, repeats at once.
    """

    def __init__(self) -> None:
        self._images: list[ImageArray] = []
        self._last: list[ImageArray] = []  # alive, so that no other array has its id
        self._said: dict[tuple[Hashable, ...], Any] = {}

    def begin(self, images: Sequence[ImageArray]) -> None:
        """The pictures of the next batch; of the one before all but the last is forgotten."""
        self._last, self._images = self._images[-1:], list(images)
        last = [id(image) for image in self._last]
        self._said = {key: answer for key, answer in self._said.items() if key[1] in last}

    def ask(self, call: Callable[..., list[T]], *asked: Sequence[Sequence[Hashable]]) -> list[T]:
        """`call(images, *asked)`, of which `call` gets to see only what it was not asked before.

        Where nothing repeats, that is the whole call as it stands. `asked` has one sequence of things per image of the
        batch.
        """
        images = self._images
        keys = [(call.__name__, id(image), *map(tuple, own)) for image, *own in zip(images, *asked, strict=True)]
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._said}
        places = sorted(new.values())
        if places:
            some = [images[i] for i in places]
            said = run_with_oom_backoff(call, some, *([own[i] for i in places] for own in asked))
            validate_outputs(call.__name__, said, [image.shape[:2] for image in some])
            self._said |= {keys[i]: answer for i, answer in zip(places, said, strict=True)}
        return [self._said[key] for key in keys]


def _same(one: ImageArray, two: ImageArray) -> bool:
    """Bit for bit; a few rows are looked at first, since most pictures differ everywhere."""
    return one.shape == two.shape and np.array_equal(one[::64], two[::64]) and np.array_equal(one, two)
