"""The memory of models from their files, and whether they fit together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from openavs.config.recipe import STAGE_GROUPS, Recipe, load_recipe
from openavs.errors import InputError, ModelError
from openavs.models.catalog import count_parameters, stored_dtype
from openavs.models.device import DeviceConfig, available_memory, total_memory
from openavs.models.ops.linear import supports_int8
from openavs.pipeline import memory_estimate as footprint
from openavs.pipeline.memory_estimate import (
    MemoryFootprint,
    choose_recipe,
    estimate_memory,
    measure_footprints,
    should_offload,
)
from openavs.pipeline.pipeline import Pipeline
from tests.plugin_recipe import write_recipe
from tests.tiny_lms import make_lm, make_vlm


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The free memory that the machine reports."""
    free = {"bytes": 0}
    monkeypatch.setattr(footprint, "free_memory", lambda place: free["bytes"])
    return free


def test_parameters_are_counted_from_the_headers(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "model-1.safetensors", {"format": "pt"})
    save_file({"c": torch.zeros((), dtype=torch.float16)}, tmp_path / "model-2.safetensors")
    assert count_parameters(tmp_path) == 12 + 5 + 1


@pytest.mark.parametrize(
    "damaged",
    [
        (1 << 40).to_bytes(8, "little") + b'{"a"',
        (2).to_bytes(8, "little") + b"[]",
        b"\x0c" + bytes(7) + b'{"a": {"b":0',
        b"",
    ],
)
def test_a_damaged_header_is_a_model_error(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(damaged)
    with pytest.raises(ModelError, match=r"model\.safetensors are damaged"):
        stored_dtype(tmp_path)


@pytest.mark.parametrize("config", ["[]", '{"text_config": null}', '{"num_attention_heads": 0, "hidden_size": 8}'])
def test_a_config_of_another_form_is_left_to_the_stage(tmp_path: Path, config: str) -> None:
    save_file({"a": torch.zeros(1000)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    found = measure_footprints(load_recipe("tiny", [f"translator.model={tmp_path}"]))
    assert found["translator"] == MemoryFootprint(4000, 4000)


@pytest.mark.parametrize("stage", ["captioner", "translator", "detector"])
def test_a_batch_size_that_is_not_a_number_is_left_to_the_stage(stage: str) -> None:
    changed = measure_footprints(load_recipe("tiny", [f"{stage}.batch_size=many"]))
    assert changed[stage].weights == measure_footprints(load_recipe("tiny"))[stage].weights


def test_the_embedded_models_are_as_large_as_they_are(tiny: Pipeline) -> None:
    found = measure_footprints(load_recipe("tiny"))
    for stage in ("captioner", "translator", "detector", "segmenter"):
        tensors = getattr(tiny, stage).model.state_dict().values()
        shared = {tensor.data_ptr(): tensor.numel() * 4 for tensor in tensors}
        assert found[stage].weights == pytest.approx(sum(shared.values()), rel=0.05)
        assert found[stage].working > 0
    closed = measure_footprints(load_recipe("tiny", ["vocabulary=[dog]"]))["captioner"]
    texts = count_parameters(Path(tiny.models["openavs:tiny/clap"]["path"]), "text_model.") * 4
    assert closed.weights == found["captioner"].weights + texts, "phrases of each clip are compared with the classes"


def test_half_precision_is_half_as_large_on_a_gpu_and_a_copy_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def detector(dtype: str) -> tuple[int, MemoryFootprint]:
        found = measure_footprints(load_recipe("tiny", [f"detector.dtype={dtype}"]))
        return found["detector"].weights, found["segmenter"]

    (full, segmenter), (half, same) = detector("float32"), detector("bfloat16")
    assert segmenter == same and half == 1.25 * full
    monkeypatch.setattr(
        footprint, "resolve_device", lambda _, dtype: DeviceConfig(torch.device("cuda"), kinds[dtype], "")
    )
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": torch.bfloat16}
    assert detector("float32")[0] == 2 * detector("bfloat16")[0]


@pytest.mark.skipif(not supports_int8(), reason="this build of torch has no 8-bit product")
def test_weights_in_eight_bits_are_counted_beside_the_mapped_file() -> None:
    full, quantized = (
        measure_footprints(load_recipe("tiny", ["detector.dtype=float32", f"detector.quantize={how}"]))["detector"]
        for how in ("null", "int8")
    )
    assert quantized.weights == 1.125 * full.weights  # half of them, in a byte instead of four
    assert quantized.working == full.working


def test_sam_on_a_gpu_is_counted_with_its_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-B at 1024 pixels in float32: 12 heads x 4096 x 4096 numbers, twice: 1.6 GB, as was measured."""
    monkeypatch.setattr(footprint, "resolve_device", lambda *_: DeviceConfig(torch.device("cuda"), torch.float32, ""))
    vision = {"image_size": 1024, "patch_size": 16, "num_attention_heads": 12}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam", "vision_config": vision}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    recipe = load_recipe("tiny", [f"segmenter.model={tmp_path}"])
    assert measure_footprints(recipe)["segmenter"].working == 2 * 12 * 4096**2 * 4


def test_models_that_do_not_fit_together_are_offloaded(memory: dict[str, int]) -> None:
    recipe: Recipe = load_recipe("tiny")
    together, turn = estimate_memory(recipe)
    assert turn < together
    memory["bytes"] = int(together / 0.9) + 2
    assert not should_offload(recipe, "auto")
    assert should_offload(recipe, "per-stage")
    memory["bytes"] = turn
    assert should_offload(recipe, "auto")
    assert not should_offload(recipe, "per-clip")
    memory["bytes"] = 3 * turn
    assert should_offload(recipe, "auto", share=1 / 3)


@pytest.mark.parametrize(
    ("changes", "free", "fate"),
    [
        ([], 40e9, "at once"),
        ([], 14e9, "in turns"),  # Qwen3-4B stays in bfloat16
        ([], 10e9, "refused"),
        (["dtype=float32"], 16e9, "refused"),
    ],
)
def test_the_recipe_with_a_language_model_without_a_gpu(
    changes: list[str], free: float, fate: str, memory: dict[str, int]
) -> None:
    """As on a machine of 64 GB, and on one of 16 GB with little and with much in use; nothing is downloaded."""
    recipe = load_recipe("openavs", ["offline=true", "device=cpu", *changes])
    memory["bytes"] = int(free)
    if fate != "refused":
        assert should_offload(recipe) == (fate == "in turns")
        return
    with pytest.raises(InputError) as caught:
        should_offload(recipe)
    sentence = str(caught.value)
    assert sentence.startswith("the recipe openavs needs ") and "\n" not in sentence
    assert (
        f" GB even if its models are loaded one group at a time, and {free / 1e9:.1f} GB of this machine's memory"
        in sentence
    )
    assert "are free; use --pipeline openavs-cpu, which needs 2." in sentence


@pytest.mark.parametrize(
    ("gpu", "gigabytes", "overrides", "name", "reason"),
    [
        (True, 24.0, [], "openavs", "a GPU with 24.0 GB"),
        (True, 6.0, [], "openavs-cpu", "a GPU with 6.0 GB"),
        (True, None, [], "openavs", "a GPU"),
        (False, 16.0, [], "openavs-cpu", "no GPU, 16.0 GB of memory"),
        (False, 2.5, [], "openavs-fast", "no GPU, 2.5 GB of memory"),
        (False, 16.0, ["device=cuda:1"], "openavs", "a GPU with 16.0 GB"),
        (True, 64.0, ["device=cpu"], "openavs-cpu", "no GPU, 64.0 GB of memory"),
        (True, 64.0, ["device=cpu", "device=auto"], "openavs", "a GPU with 64.0 GB"),
        (False, None, ["device=mps"], "openavs-cpu", "no GPU"),
    ],
)
def test_the_default_recipe_is_the_best_one_that_fits_the_machine(
    gpu: bool,
    gigabytes: float | None,
    overrides: list[str],
    name: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = None if gigabytes is None else int(gigabytes * 1e9)
    monkeypatch.setattr(footprint, "has_gpu", lambda: gpu)
    monkeypatch.setattr(footprint, "_total_gpu_memory", lambda device: size)
    monkeypatch.setattr(footprint, "total_memory", lambda: size)
    found = choose_recipe(overrides)
    assert (found.name, found.reason) == (name, reason)


def test_the_smallest_recipe_is_named_and_then_none(memory: dict[str, int]) -> None:
    memory["bytes"] = int(1e9)
    with pytest.raises(InputError, match=r"; use --pipeline tiny, which needs 0\.\d GB"):
        should_offload(load_recipe("openavs-cpu", ["offline=true"]))
    memory["bytes"] = 1000
    with pytest.raises(InputError, match=r"the recipe tiny needs .* are free; free some memory"):
        should_offload(load_recipe("tiny"))


def test_fewer_workers_may_fit(memory: dict[str, int]) -> None:
    recipe = load_recipe("openavs-cpu", ["offline=true", "device=cpu"])
    memory["bytes"] = int(8e9)
    assert should_offload(recipe, share=0.4)
    with pytest.raises(InputError, match=r"and 2\.0 GB of this .* for each worker are free; use fewer --workers"):
        should_offload(recipe, share=0.25)
    memory["bytes"] = int(2e9)
    with pytest.raises(InputError, match="for each worker are free; use --pipeline tiny"):
        should_offload(recipe, share=0.5)


def test_what_is_too_large_is_not_downloaded(memory: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def resolve(reference: str, offline: bool) -> Any:
        asked.append(offline)
        raise ModelError("not here")

    monkeypatch.setattr(footprint, "resolve", resolve)
    for free, instead in ((2e9, "openavs-fast"), (1e9, "tiny")):
        memory["bytes"] = int(free)
        with pytest.raises(InputError, match=f"use --pipeline {instead}"):
            should_offload(load_recipe("openavs"))
    assert asked and all(asked)


def test_where_the_system_does_not_say_all_is_loaded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "free_memory", lambda place: None)
    assert not should_offload(load_recipe("openavs", ["offline=true", "device=cpu"]))


def test_models_that_are_not_here_are_known_by_the_table() -> None:
    """Qwen3-4B in bfloat16, with 2.4 GB of keys and values, and half a GB of Python and torch."""
    recipe = load_recipe("openavs", ["offline=true", "device=cpu"])
    assert measure_footprints(recipe)["translator"].weights == pytest.approx(4022.5e6 * 2)
    together, turn = estimate_memory(recipe)
    assert turn == pytest.approx(4022.5e6 * 2 + 2.4e9 + 0.5e9)  # the language model's turn
    assert together > turn + 2e9


def test_the_films_of_pe_av_are_counted_and_its_weights_are_float32() -> None:
    verifier = "{use: pe-av, model: 'hf:facebook/pe-av-large@main', batch_size: 3}"
    recipe = load_recipe("openavs", ["offline=true", "device=cpu", f"verifier={verifier}"])
    (key,) = (key for key in recipe.models() if key.startswith("verifier"))
    assert measure_footprints(recipe)[key] == MemoryFootprint(1_459_000_000 * 4, 3 * 600_000_000)


def test_language_models_are_counted_in_the_dtype_they_are_loaded_in(tmp_path: Path) -> None:
    folder = make_lm(tmp_path / "lm")
    weights = load_file(folder / "model.safetensors")
    parameters = sum(tensor.numel() for tensor in weights.values())
    recipe = load_recipe("tiny", [f"translator.model={folder}", "device=cpu"])
    assert measure_footprints(recipe)["translator"].weights == 4 * parameters
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}, folder / "model.safetensors")
    assert measure_footprints(recipe)["translator"].weights == 2 * parameters


def test_the_picture_of_a_vision_language_model_is_counted(tmp_path: Path) -> None:
    folder = make_vlm(tmp_path / "vlm")

    def working(*options: str) -> int:
        place = f"translator={{use: vlm, model: {folder}, batch_size: 2}}"
        return measure_footprints(load_recipe("tiny", [place, "device=cpu", *options]))["translator"].working

    keys, block = 2 * 2 * 2 * 8, 6 * 32 + 2 * 48  # values a token in the cache, and a patch in the vision encoder
    assert working() == 2 * 4 * (2048 * keys + (1 << 20) // 8**2 * block + (1 << 20) // 16**2 * keys)
    assert working("translator.max_pixels=65536") < working() / 4
    known = load_recipe(
        "openavs", ["translator={use: vlm, model: 'hf:Qwen/Qwen3-VL-4B-Instruct@main'}", "offline=true"]
    )
    assert measure_footprints(known)["translator"] == MemoryFootprint(4_437_800_000 * 2, 2_400_000_000)


def test_without_models_nothing_is_offloaded(tmp_path: Path, memory: dict[str, int]) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    assert estimate_memory(recipe) == (0, 0)
    assert not should_offload(recipe, "auto")


def test_every_stage_has_a_group() -> None:
    from openavs.registry import STAGES

    assert sorted(stage for turn in STAGE_GROUPS for stage in turn) == sorted(STAGES)


def test_free_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    place = DeviceConfig(torch.device("cpu"), torch.float32, "")
    total = total_memory()
    assert total is not None and 0 < (footprint.free_memory(place) or 0) <= total
    monkeypatch.delattr(os, "sysconf")  # Windows has none
    assert footprint.free_memory(place) is None


def test_cached_files_count_as_free_and_a_container_sets_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable: 6000 kB\nHugePages_Total: 0\n")
    monkeypatch.setattr("openavs.models.device._MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("openavs.models.device.CGROUP", tmp_path)
    assert available_memory() == 6000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    (tmp_path / "memory.stat").write_text("anon 1500000\ninactive_file 400000\n")
    assert available_memory() == 1_400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == 6000 * 1024


@pytest.mark.gpu
def test_free_memory_of_a_gpu() -> None:
    place = DeviceConfig(torch.device("cuda"), torch.float32, "")
    assert 0 < (footprint.free_memory(place) or 0) <= torch.cuda.get_device_properties(0).total_memory
