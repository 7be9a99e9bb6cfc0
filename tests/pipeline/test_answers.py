"""Models' answers are looked over before they are used."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from openavs.errors import InvalidOutputError
from openavs.stages.contracts import call_stage
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Caption, Detection, Mask, Verdict

SIZE = (4, 6)


def mask(size: tuple[int, int] = SIZE, score: float | None = 0.9) -> Mask:
    return Mask(mask_to_rle(np.ones(size, dtype=bool)), score)


def box(*edges: float, score: float = 0.5) -> Detection:
    return Detection(edges or (0.0, 0.0, 2.0, 2.0), "dog", score)  # type: ignore[arg-type]


def answers(call: str, items: list[Any]) -> list[list[Any]]:
    """Call a stage that returns no items for its first image and some for its second."""
    stage = SimpleNamespace(**{call: lambda images, given: [[], items]})
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    found: list[list[Any]] = call_stage(call, stage, [image, image], [[], items])
    return found


@pytest.mark.parametrize(
    ("call", "items"),
    [
        ("caption", [Caption("dog", None, 0.0, 1.0), Caption("dog", 0.4, 0.0, 1.0)]),
        ("detect", [box()]),
        ("segment", [mask(), mask(score=None)]),
        ("segment_phrases", [(box(), mask())]),
        ("verify", [Verdict("rejected", 0.2)]),
    ],
)
def test_sound_answers_pass(call: str, items: list[Any]) -> None:
    assert answers(call, items) == [[], items]


@pytest.mark.parametrize(
    ("call", "item", "said"),
    [
        ("caption", Caption("dog", math.nan, 0.0, 1.0), "the captioner returned an invalid score"),
        ("detect", box(0.0, math.nan, 2.0, 2.0), "the detector returned an invalid box"),
        ("detect", box(0.0, 0.0, math.inf, 2.0), "an invalid box"),
        ("detect", box(score=math.nan), "an invalid score, nan"),
        ("segment", mask((6, 4)), "the segmenter returned a mask of 6 x 4 pixels for a frame of 4 x 6"),
        ("segment", mask(score=-math.inf), "an invalid score"),
        ("segment_phrases", (box(), mask((1, 1))), "a mask of 1 x 1 pixels"),
        ("verify", Verdict("rejected", math.nan), "the verifier returned an invalid score"),
    ],
)
def test_invalid_model_outputs_are_refused(call: str, item: Any, said: str) -> None:
    with pytest.raises(InvalidOutputError, match=said):
        answers(call, [item])
