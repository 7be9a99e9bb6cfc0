"""Validation of model outputs: numbers are finite, masks have the size of their frame.

Models in half precision and damaged models return NaN. No comparison with NaN is true, so without this check it would
become an empty mask that looks like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any

from openavs.errors import InvalidOutputError
from openavs.structures.types import Detection, Mask

_STAGES = {"caption": "captioner", "detect": "detector", "verify": "verifier"}
_ADVICE = "try dtype=float32, and check that the model's files are complete"


def validate_outputs(call: str, answers: Sequence[Any], sizes: Sequence[tuple[int, int]] | None = None) -> None:
    """Check the outputs of a stage's method.

    Args:
        call: the method's name.
        answers: one sequence of captions, detections, masks or verdicts per input.
        sizes: (height, width) of the inputs' frames, for masks.

    Raises:
        InvalidOutputError: a number is not finite, or a mask has another size than its frame.
    """
    for answer, size in zip(answers, sizes or repeat(None, len(answers)), strict=True):
        for item in answer:
            for fault in _faults(item, size):
                raise InvalidOutputError(f"the {_STAGES.get(call, 'segmenter')} returned {fault}; {_ADVICE}")


def _faults(item: Any, size: tuple[int, int] | None) -> Iterator[str]:
    if isinstance(item, tuple):  # a box with its mask
        for part in item:
            yield from _faults(part, size)
    elif isinstance(item, Detection) and not all(map(math.isfinite, item.box)):
        yield f"an invalid box, {tuple(map(float, item.box))}"
    elif isinstance(item, Mask) and size is not None and item.rle.size != size:
        yield f"a mask of {item.rle.size[0]} x {item.rle.size[1]} pixels for a frame of {size[0]} x {size[1]}"
    score = getattr(item, "score", None)  # of a caption, a box, a mask or a verdict
    if score is not None and not math.isfinite(score):
        yield f"an invalid score, {score}"
