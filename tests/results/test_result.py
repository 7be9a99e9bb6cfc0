"""A result in Python: arrays, tables, plots, another threshold, short representations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.pipeline.pipeline import Pipeline
from openavs.results.result import Result
from openavs.stages.captioners.oracle import OracleCaptioner
from openavs.stages.segmenters.box import BoxSegmenter
from openavs.stages.translators.lexicon_translator import IdentityTranslator
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import (
    BoolMask,
    Clip,
    ClipResult,
    Detection,
    Event,
    Frame,
    FrameResult,
    Prompt,
    Rejection,
    Segment,
)

SIZE = (4, 6)
BOX = (1.0, 0.0, 3.0, 2.0)


def block(x: int, width: int = 2) -> BoolMask:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[:2, x : x + width] = True
    return mask


def segment(phrase: str, score: float, x: int, label: str | None = None) -> Segment:
    return Segment(mask_to_rle(block(x)), (float(x), 0.0, x + 2.0, 2.0), phrase, score, label=label)


FRAMES = (
    FrameResult(
        0,
        0.5,
        prompts=(Prompt("dog"), Prompt("bell"), Prompt("cat")),
        segments=(segment("dog", 0.8, 0, "animal"), segment("bell", 0.4, 4)),
        rejected=(Rejection("cat", "below threshold", 0.2, BOX), Rejection("cow", "not found")),
    ),
    FrameResult(1, 1.5, silent=True),
)
PLAIN = ClipResult("clip", SIZE, FRAMES, events=(Event("dog", 0.1, 0.9, 0.8, 25.0),))


def clip() -> Clip:
    def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
        yield from (Frame(i, i + 0.5, np.zeros((*SIZE, 3), np.uint8)) for i in range(2) if not wanted or i in wanted)

    return Clip("clip", (0.5, 1.5), 1.0, SIZE, frames, None)


@pytest.fixture
def result() -> Result:
    return Result.of(PLAIN, clip())


def test_masks_are_arrays(result: Result) -> None:
    frame = result.frames[0]
    assert (frame.segments[0].array == block(0)).all()
    assert frame.masks.shape == (2, *SIZE) and (frame.masks[1] == block(4)).all()
    assert result.frames[1].masks.shape == (0, 0, 0)
    assert (result.masks() == np.stack([block(0) | block(4), np.zeros(SIZE, bool)])).all()
    for name in ("dog", "animal"):
        assert (result.masks(name)[0] == block(0)).all()


def test_the_heat_map_is_the_share_of_frames(result: Result) -> None:
    heat = result.heatmap()
    assert heat.dtype == np.float32 and heat.shape == SIZE
    assert (heat == 0.5 * (block(0) | block(4))).all()
    assert not result.heatmap("cat").any()


def test_a_table_has_one_row_per_segment(result: Result) -> None:
    table: Any = result.to_pandas()
    assert list(table.phrase) == ["dog", "bell"] and list(table.area) == [4, 4]
    assert table.iloc[0][["time", "x1", "label"]].tolist() == [0.5, 2.0, "animal"]
    assert list(Result.of(replace(PLAIN, frames=())).to_pandas().columns) == list(table.columns)


def test_the_timeline_has_a_row_for_every_prompt(result: Result) -> None:
    axes = result.plot_timeline()
    assert [text.get_text() for text in axes.get_yticklabels()] == ["dog", "bell", "cat"]
    assert axes.get_xlabel() == "time (s)"
    assert result.plot_timeline(axes) is axes


def test_a_higher_threshold_rejects_segments_without_a_model(result: Result) -> None:
    strict = result.with_threshold(0.5)
    assert [s.phrase for s in strict.frames[0].segments] == ["dog"]
    assert strict.frames[0].rejected[-1] == Rejection("bell", "below threshold", 0.4, (4.0, 0.0, 6.0, 2.0))
    assert strict.recipe["filtering"]["box_threshold"] == 0.5
    assert strict.video is result.video
    back = strict.with_threshold(0.3, pipe())
    assert [s.phrase for s in back.frames[0].segments] == ["dog", "bell"]


def pipe() -> Pipeline:
    class Nothing:
        def detect(self, images: object, prompts: object) -> list[list[Detection]]:
            raise AssertionError("the detector does not run again")

    return Pipeline(OracleCaptioner(), IdentityTranslator(), Nothing(), BoxSegmenter())


def test_a_lower_threshold_takes_the_rejected_boxes_with_masks_on_request(result: Result) -> None:
    assert result.with_threshold(0.1).frames == result.frames
    more = result.with_threshold(0.1, pipe())
    cat = more.frames[0].segments[-1]
    assert (cat.phrase, cat.score, cat.box) == ("cat", 0.2, BOX)
    assert (cat.array == block(1)).all()
    assert [r.phrase for r in more.frames[0].rejected] == ["cow"]


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_is_a_score(result: Result, threshold: float) -> None:
    with pytest.raises(InputError, match="from 0 to 1"):
        result.with_threshold(threshold)


def test_representations_are_one_line(result: Result) -> None:
    assert repr(result.frames[0]) == "<FrameResult 0 at 0.50 s: dog 0.80, bell 0.40>"
    assert repr(result.frames[1]) == "<FrameResult 1 at 1.50 s: silent>"
    for value in (result, *result.frames, result.frames[0].segments[0].mask):
        assert "\n" not in repr(value) and len(repr(value)) < 100
