"""The memory of models from their files, and whether they fit together."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from openavs import footprint
from openavs.device import Placement
from openavs.footprint import footprints, in_turns, needed
from openavs.known_models import count_parameters
from openavs.pipeline import Pipeline
from openavs.recipes import Recipe, load_recipe
from openavs.turns import TURNS
from tests.plugin_recipe import write_recipe


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the machine says is free."""
    free = {"bytes": 0}
    monkeypatch.setattr(footprint, "free_memory", lambda place: free["bytes"])
    return free


def test_parameters_are_counted_from_the_headers(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "model-1.safetensors", {"format": "pt"})
    save_file({"c": torch.zeros((), dtype=torch.float16)}, tmp_path / "model-2.safetensors")
    assert count_parameters(tmp_path) == 12 + 5 + 1


def test_the_embedded_models_are_as_large_as_they_are(tiny: Pipeline) -> None:
    found = footprints(load_recipe("tiny"))
    for stage in ("captioner", "translator", "detector", "segmenter"):
        tensors = getattr(tiny, stage).model.state_dict().values()
        shared = {tensor.data_ptr(): tensor.numel() * 4 for tensor in tensors}
        assert found[stage].weights == pytest.approx(sum(shared.values()), rel=0.05)
        assert found[stage].working > 0


def test_half_precision_is_half_as_large() -> None:
    full, half = (footprints(load_recipe("tiny", [f"detector.dtype={t}"])) for t in ("float32", "bfloat16"))
    assert full["detector"].weights == 2 * half["detector"].weights
    assert full["segmenter"] == half["segmenter"]


def test_sam_is_reckoned_with_its_attention(tmp_path: Path) -> None:
    """ViT-B at 1024 pixels in float32: 12 heads x 4096 x 4096 numbers, twice: 1.6 GB, as was measured."""
    vision = {"image_size": 1024, "patch_size": 16, "num_attention_heads": 12}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam", "vision_config": vision}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    recipe = load_recipe("tiny", [f"segmenter.model={tmp_path}"])
    assert footprints(recipe)["segmenter"].working == 2 * 12 * 4096**2 * 4


def test_models_that_do_not_fit_together_take_turns(memory: dict[str, int]) -> None:
    recipe: Recipe = load_recipe("tiny")
    together, turn = needed(recipe)
    assert turn < together
    memory["bytes"] = int(together / 0.9) + 2
    assert not in_turns(recipe, "auto")
    assert in_turns(recipe, "stage")
    assert in_turns(recipe, "auto", share=0.5)
    memory["bytes"] = int(turn / 0.9) + 2
    assert in_turns(recipe, "auto")
    assert not in_turns(recipe, "clip")


def test_what_hardly_fits_is_a_warning(memory: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    memory["bytes"] = 1000
    assert in_turns(load_recipe("tiny"), "auto")
    assert "of memory are hardly enough for these models" in caplog.text


def test_models_that_are_not_here_are_known_by_the_table() -> None:
    recipe = load_recipe("openavs", ["offline=true", "device=cpu"])
    assert footprints(recipe)["translator"].weights == pytest.approx(4022.5e6 * 4)
    together, turn = needed(recipe)
    assert turn == pytest.approx(4022.5e6 * 4)  # the language model's turn
    assert together > 18e9


def test_without_models_nobody_takes_turns(tmp_path: Path, memory: dict[str, int]) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    assert needed(recipe) == (0, 0)
    assert not in_turns(recipe, "auto")


def test_every_stage_has_its_turn() -> None:
    from openavs.registry import STAGES

    assert sorted(stage for turn in TURNS for stage in turn) == sorted(STAGES)


def test_free_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Placement(torch.device("cpu"), torch.float32, "")
    assert 0 < footprint.free_memory(place) < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.delattr(os, "sysconf")  # Windows has none
    assert footprint.free_memory(place) == 4 << 30


@pytest.mark.gpu
def test_free_memory_of_a_gpu() -> None:
    place = Placement(torch.device("cuda"), torch.float32, "")
    assert 0 < footprint.free_memory(place) <= torch.cuda.get_device_properties(0).total_memory
