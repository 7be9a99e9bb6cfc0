"""Several verifiers in one pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openavs.caching.build import build_pipeline
from openavs.config.recipe import load_recipe
from openavs.errors import InputError
from openavs.pipeline.lockfile import ModelLockfile, pin_recipe
from openavs.pipeline.memory_estimate import estimate_memory, measure_footprints
from openavs.pipeline.offload import lazy_stages
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import BackendCache, build_backends
from openavs.structures.types import Clip, ClipResult
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.stages.verifiers.plugins import LOOK, MOTION, write_verifiers

COMMIT = "0" * 39 + "a"
CLIP = {"use": "clip", "model": "openavs:tiny/clip"}


@pytest.fixture
def clip() -> Clip:
    return scene_to_clip(plan_scene([Role("dog", (True, True))], scene_rng("test", 77, 5), 2, (64, 80)), "dog")


def names(result: ClipResult) -> set[tuple[str, ...]]:
    return {tuple(verdict.verifier for verdict in s.verdicts) for frame in result.frames for s in frame.segments}


@pytest.mark.parametrize("tracker", [None, {"use": "iou"}])
def test_verifiers_of_frames_run_before_those_of_clips(clip: Clip, tracker: Any, tmp_path: Path) -> None:
    recipe = load_recipe(write_verifiers(tmp_path, MOTION, LOOK, tracker=tracker))
    result = Pipeline.from_recipe(recipe)(clip)
    assert names(result) == {("look", "motion")}
    assert "verify" in result.timings


def test_verifiers_of_one_kind_run_in_the_order_of_the_recipe(clip: Clip, tmp_path: Path) -> None:
    low, high = MOTION | {"score": 0.25}, MOTION | {"score": 0.75}
    result = Pipeline.from_recipe(load_recipe(write_verifiers(tmp_path, high, low)))(clip)
    assert {tuple(v.score for v in s.verdicts) for f in result.frames for s in f.segments} == {(0.75, 0.25)}
    assert {s.verifier_score for f in result.frames for s in f.segments} == {0.25}


@pytest.mark.parametrize("schedule", ["per-clip", "per-stage"])
def test_several_verifiers_run_under_both_schedules(clip: Clip, schedule: str, tmp_path: Path) -> None:
    recipe = load_recipe(write_verifiers(tmp_path, LOOK, MOTION))
    pipeline, _ = build_pipeline(recipe, schedule=schedule, scratch=tmp_path / "scratch")
    result = pipeline(clip)
    assert names(result) == {("look", "motion")}
    assert result.recipe["verifier"] == [LOOK, MOTION]


def test_unchanged_verifiers_stay_in_memory(tmp_path: Path) -> None:
    held: BackendCache = {}
    first = build_backends(load_recipe(write_verifiers(tmp_path, LOOK, MOTION)), held).verifiers
    again = build_backends(load_recipe(tmp_path / "recipe.yaml", ["verifier.2.score=0.75"]), held).verifiers
    assert again[0] is first[0] and again[1] is not first[1]
    assert build_backends(load_recipe(tmp_path / "recipe.yaml", ["verifier=null"]), held).verifiers == ()
    assert sorted(held) == ["captioner", "detector", "segmenter", "translator"]


def test_a_wrong_option_names_its_verifier(tmp_path: Path) -> None:
    recipe = load_recipe(write_verifiers(tmp_path, LOOK, MOTION | {"score": "high"}))
    with pytest.raises(InputError, match=r"the option 'verifier.2.score' must be a number, not 'high'"):
        build_backends(recipe)


def test_a_lock_pins_the_models_of_all_verifiers() -> None:
    verifiers = "verifier=[{use: clip, model: 'hf:org/a@main'}, {use: other}, {use: clip, model: 'hf:org/b@main'}]"
    recipe = load_recipe("tiny", [verifiers])
    locked = pin_recipe(recipe, ModelLockfile({"hf:org/b@main": COMMIT}))
    assert locked.models() == recipe.models() | {"verifier.3": f"hf:org/b@{COMMIT}"}
    single = load_recipe("tiny", ["verifier={use: clip, model: 'hf:org/b@main'}"])
    assert pin_recipe(single, ModelLockfile({"hf:org/b@main": COMMIT})).models()["verifier"] == f"hf:org/b@{COMMIT}"


def test_all_verifiers_are_loaded_with_the_stages_of_frames(tmp_path: Path) -> None:
    manager, stages = lazy_stages(load_recipe("tiny", [f"verifier=[{CLIP}, {CLIP}]".replace("'", "")]))
    assert list(stages)[-2:] == ["verifier.1", "verifier.2"]
    for key in ("captioner", "segmenter", "verifier.1", "verifier.2"):
        manager.backend(key)
    assert manager.most == 3  # without the captioner
    manager.backend("captioner")
    assert dict(manager.loads) == {"captioner": 2, "segmenter": 1, "verifier.1": 1, "verifier.2": 1}


def test_memory_of_verifiers_counts_in_the_group_of_frames(tmp_path: Path) -> None:
    plain = load_recipe("tiny", ["device=cpu"])
    two = load_recipe("tiny", ["device=cpu", f"verifier=[{CLIP}, {CLIP}]".replace("'", "")])
    weights = measure_footprints(two)["verifier.1"].weights
    assert weights > 0
    assert estimate_memory(two)[0] == estimate_memory(plain)[0] + 2 * weights
    assert estimate_memory(load_recipe(write_verifiers(tmp_path, LOOK, MOTION))) == (0, 0)  # without models
