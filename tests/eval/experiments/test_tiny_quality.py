"""The recipe `tiny` on held-out scenes, at small size, with limits below its scores."""

from __future__ import annotations

import pytest

from eval.experiments.tiny_quality import score_layout

CLIPS = 15


@pytest.mark.long
@pytest.mark.parametrize(
    ("layout", "floors"),
    [
        ("s4", {"miou": 0.70, "f": 0.80}),
        ("ms3", {"miou": 0.60, "f": 0.60}),
        ("avss", {"miou_foreground": 0.45}),
    ],
)
def test_held_out_scenes(layout: str, floors: dict[str, float]) -> None:
    figures = score_layout(layout, CLIPS, seed=7, overrides=[])
    for name, floor in floors.items():
        value = figures[name]
        assert value is not None and value >= floor, (name, figures)
    accuracy = figures["silent_accuracy"]
    assert accuracy is None or accuracy >= 0.99
    caught = figures["distractor_clips"]
    assert caught is not None and caught <= 0.25  # few clips have one: one of six in ms3
