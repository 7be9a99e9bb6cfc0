"""The measurement of the verifier `sync` on a few small clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, sample_scene, scene_rng


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("synchrony")


def test_shares_are_over_frames_with_an_interval_over_clips(script: Any) -> None:
    found = script.summarize([[True, True, False], [True]])
    assert (found["share"], found["frames"], found["clips"]) == (0.75, 4, 2)
    assert found["low"] == pytest.approx(2 / 3, abs=1e-3) and found["high"] == 1.0


def test_a_clip_of_twins_has_outcomes_of_all_measures(script: Any) -> None:
    scores = script.SyncScores()
    scores.update(sample_scene("twins", "train", 100, 0, seconds=4, size=(96, 96)).scene)
    scores.update(sample_scene("twins", "train", 100, 7, seconds=4, size=(96, 96)).scene)  # off-screen
    found = scores.compute()
    assert any(name.startswith("decided, ") for name in found) and found["lone sources dropped"]["share"] == 0.0
    (kept,) = [name for name in found if name.startswith("off-screen kept, ")]
    assert found[kept]["share"] == 1.0 and 0 < found[kept]["frames"] <= 4


def test_cost_is_that_of_a_file(script: Any, tmp_path: Path) -> None:
    scene = plan_scene([Role("dog", (True, True))], scene_rng("test", 1), 2, (96, 128))
    write_clip(tmp_path / "dog.mp4", scene)
    cost = script.measure_cost(tmp_path / "dog.mp4", 2.0)
    assert cost["decoding_cpu_s"] > 0 and cost["sync_cpu_s"] > 0 and 0 < cost["peak_mb"] < 100
