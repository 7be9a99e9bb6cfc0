"""The cost of recipes: 8-bit masks, timed stages, and models that can be built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openavs.config.recipe import load_recipe
from openavs.models.ops.linear import supports_int8


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("recipe_cost")


@pytest.mark.skipif(not supports_int8(), reason="this build of torch has no 8-bit product")
def test_masks_in_eight_bits_agree_with_those_in_float32(script: Any) -> None:
    figures = script.agreements(1)
    assert set(figures) == {"agreement.detector", "agreement.segmenter", "agreement.both"}
    assert 0.9 < min(figures.values()) < 1  # the option has an effect; over 30 clips: 0.98


def test_stages_are_restored_after_a_run_of_uneven_work(script: Any) -> None:
    pipeline = script.tiny_pipeline("captioner={use: oracle}", "translator={use: none}", "verifier=null")
    (clip,) = script.synthetic_clips(1)
    with pytest.raises(SystemExit, match="the work is uneven"):  # the embedded models find what is in the scene
        script.run(pipeline, SimpleNamespace(clip=lambda: clip))
    for stage, name in script.WORK.items():
        backend = getattr(pipeline, stage)
        assert getattr(backend, name).__self__ is backend  # the method itself, and no timer around it


def test_a_model_without_a_published_configuration_is_named(load_script: Callable[[str], Any], tmp_path: Path) -> None:
    recipe = load_recipe("openavs", ["captioner={use: oracle}"])
    with pytest.raises(SystemExit, match="openavs: no published configuration of Qwen/Qwen3-4B-Instruct-2507"):
        load_script("workloads").save_recipe_models(recipe, tmp_path, None)
