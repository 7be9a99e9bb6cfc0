"""Results of squares, in a result folder as a job writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.jobs.save import save_result
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import ClipResult, FrameResult, Segment

RECIPE: dict[str, Any] = {"name": "r", "sample": {"fps": 1.0}}


def square(left: int, track: int | None = 1, phrase: str = "dog", **more: Any) -> Segment:
    """A square of 8 pixels at a column of a frame of 20 x 30."""
    mask = np.zeros((20, 30), dtype=bool)
    mask[6:14, left : left + 8] = True
    return Segment(mask_to_rle(mask), (left, 6, left + 8, 14), phrase, more.pop("score", 0.5), track=track, **more)


def three_frames(clip: str = "clip") -> ClipResult:
    """A dog (track 1) and a cat (track 2) in each of three frames."""
    frames = tuple(FrameResult(i, i + 0.5, segments=(square(i), square(20, 2, "cat"))) for i in range(3))
    return ClipResult(clip, (20, 30), frames, f"{clip}.mp4", RECIPE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a clip in a result folder."""
    return save_result(tmp_path / "out", three_frames())
