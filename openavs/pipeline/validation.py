"""What a model answered is looked over before it is used: numbers are finite, masks have the size of their picture.

A model in half precision, or one that was damaged, answers NaN; no comparison with NaN holds, so that unchecked it
would be an empty mask that looks like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

from openavs.errors import InvalidOutputError
from openavs.structures.types import Detection, Mask

_WHO = {"caption": "captioner", "detect": "detector", "verify": "verifier"}
_MEND = "try dtype=float32, and see that the model's files are whole"


def validate_outputs(call: str, answers: Sequence[Any], sizes: Sequence[tuple[int, int]] | None = None) -> None:
    """Looks over what a stage's method `call` answered; `sizes` are those of the pictures (height, width), if any.

    Raises:
        UnusableAnswer: one holds a number that is not finite, or a mask of another size than its picture.
    """
    for answer, size in zip(answers, sizes or repeat(None, len(answers)), strict=True):
        for item in answer:
            for fault in _faults(item, size):
                raise InvalidOutputError(f"the {_WHO.get(call, 'segmenter')} answered with {fault}; {_MEND}")


def _faults(item: Any, size: tuple[int, int] | None) -> Iterator[str]:
    if isinstance(item, tuple):  # a box with its mask
        for part in item:
            yield from _faults(part, size)
    elif isinstance(item, Detection) and not all(map(math.isfinite, item.box)):
        yield f"a box that is no box, {tuple(map(float, item.box))}"
    elif isinstance(item, Mask) and size is not None and item.rle.size != size:
        yield f"a mask of {item.rle.size[0]} x {item.rle.size[1]} pixels for a picture of {size[0]} x {size[1]}"
    score = getattr(item, "score", None)  # of a caption, a box, a mask or a verdict
    if score is not None and not math.isfinite(score):
        yield f"a score that is no number, {score}"
