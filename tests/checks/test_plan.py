"""The plan of a run: downloads, memory, time, servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from openavs.checks.plan import plan_run
from openavs.config.recipe import load_recipe
from openavs.errors import InputError


@pytest.fixture(autouse=True)
def _nothing_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("openavs.checks.plan.is_environment_offline", lambda: False)
    monkeypatch.setattr("openavs.pipeline.memory_estimate.free_memory", lambda place: int(64e9))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")


def test_downloads_memory_and_time_are_named_before_a_run(tmp_path: Path) -> None:
    plan = plan_run(load_recipe("openavs-cpu", ["device=cpu"]))
    first, *models, memory, time = plan.lines(60)
    assert first.startswith(f"the recipe openavs-cpu downloads about 1.7 GB into {tmp_path / 'hub'} (")
    assert [line.split(":")[0].strip() for line in models] == ["to download"] * 3
    assert "facebook/sam-vit-base@main (400 MB, Apache-2.0)" in models[2]
    assert memory.startswith("  memory: about ") and memory.endswith("of the 64.0 GB that are free")
    assert time.startswith("  time: about 11 to 17 minutes for 60 frames on one core")
    assert list(plan.refuse()) == []
    *_, time = plan.lines()
    assert time.startswith("  time: about 10.9 to 17.2 s for each frame on one core")


def test_the_time_of_unmeasured_models_is_not_guessed() -> None:
    smaller = load_recipe("openavs-cpu", ["device=cpu", "detector.shortest_edge=320"])
    for recipe in (load_recipe("openavs", ["device=cpu"]), smaller):
        *_, time = plan_run(recipe).lines(60)
        assert time == "  time: not measured for these models; 60 frames to process"
    *_, time = plan_run(load_recipe("openavs-fast", ["device=cpu"])).lines(60)
    assert time.startswith("  time: about 3 minutes for 60 frames on one core")


def test_embedded_models_have_no_plan() -> None:
    assert list(plan_run(load_recipe("tiny")).lines(60)) == []


def test_a_gated_model_and_a_server_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    changes = ["device=cpu", "translator={use: openai, model: gpt-4o}"]
    lines = "\n".join(plan_run(load_recipe("sam3", changes)).lines())
    assert "sends captions to https://api.openai.com/v1 (translator openai) with the API key in OPENAI_API_KEY" in lines
    assert "sam3@main (3.4 GB, SAM License, gated, needs access and `hf auth login`)" in lines
    assert "secret" not in lines


def test_a_missing_key_and_too_little_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    [reason] = plan_run(load_recipe("openavs-cpu", ["device=cpu", "translator={use: openai, model: gpt-4o}"])).refuse()
    assert reason.startswith("the recipe openavs-cpu cannot run: the environment variable OPENAI_API_KEY")
    monkeypatch.setattr("openavs.pipeline.memory_estimate.free_memory", lambda place: int(1e9))
    with pytest.raises(InputError, match="use --pipeline tiny"):
        plan_run(load_recipe("openavs-cpu", ["device=cpu"]))


def test_without_the_hub_a_server_may_still_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openavs.checks.plan.is_environment_offline", lambda: True)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    recipe = load_recipe("openavs-cpu", ["device=cpu", "translator={use: openai, model: gpt-4o}"])
    first, *commands = plan_run(recipe).refuse()
    assert "3 of 3 models are not on this disk" in first and len(commands) == 3
    assert all(line.startswith("  hf download ") for line in commands)
