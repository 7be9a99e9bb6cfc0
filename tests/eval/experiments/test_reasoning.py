"""The measurement of the reasoner on two small clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from openavs.pipeline.pipeline import Pipeline
from openavs.synthetic.scenes import Role, plan_scene, scene_rng


@pytest.fixture(scope="module")
def figures(load_script: Callable[[str], Any]) -> Any:
    script = load_script("reasoning")
    scores = script.ReasoningScores()
    pipeline: Pipeline = script.candidate_pipeline()
    parts = [Role("dog", (True, True)), Role("bell", (False, False))]
    scores.update(pipeline, plan_scene(parts, scene_rng("test", 77, 6), 2, (160, 160)))
    return scores.compute()


def test_a_right_answer_is_the_right_selection_with_one_request(figures: Any) -> None:
    assert figures["clips with candidates"] == 1 and 0 < figures["that sound"] < figures["candidates"]
    assert figures["right"]["IoU with the right selection"] == 1.0
    assert (figures["right"]["most requests"], figures["right"]["clips with a warning"]) == (1, 0)
    assert figures["inverted"]["IoU with the right selection"] < 0.5
    assert figures["mIoU"]["right selection"] > figures["mIoU"]["all candidates"]


@pytest.mark.parametrize("name", ["wrong numbers", "broken", "hostile"])
def test_unusable_answers_change_nothing_but_the_warning(name: str, figures: Any) -> None:
    assert (figures[name]["changed clips"], figures[name]["clips with a warning"]) == (0, 1)
    assert figures[name]["most requests"] == 2
    assert figures[name]["largest picture in pixels"] <= 1 << 20
    assert figures[name]["largest request in bytes"] < 1_500_000


def test_a_second_request_recovers(figures: Any) -> None:
    assert figures["broken, then right"]["IoU with the right selection"] == 1.0
