"""Fingerprints of stages: equal for equal outputs, different after every change that may affect them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from openavs.caching.fingerprint import folder_digest, stage_fingerprint
from openavs.config.recipe import load_recipe
from openavs.models.device import resolve_device
from openavs.registry import BackendCache, build_backends, check_backends
from tests.plugin_recipe import write_recipe

STAGES = ("captioner", "translator", "detector")


def fingerprint(held: BackendCache, *overrides: str, stage: str = "captioner") -> str:
    recipe = load_recipe("tiny", overrides)
    return stage_fingerprint(getattr(build_backends(recipe, held), stage), *check_backends(recipe)[stage])


def test_a_fingerprint_changes_with_what_an_answer_depends_on(held: BackendCache) -> None:
    usual = fingerprint(held)
    assert fingerprint(held, "offline=true", "filtering.box_threshold=0.9", "translator.max_reprompts=0") == usual
    changes = ("captioner.top_k=1", "captioner.batch_size=2", "captioner.vocabulary=[dog, cat]")
    assert len({usual, *(fingerprint(held, change) for change in changes)}) == 4
    assert fingerprint(held, stage="translator") != fingerprint(held, "translator.prompt=default", stage="translator")


@pytest.mark.parametrize("stage", STAGES)
def test_floats_depend_on_the_number_of_threads(held: BackendCache, stage: str) -> None:
    usual, threads = fingerprint(held, stage=stage), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert fingerprint(held, stage=stage) != usual
    finally:
        torch.set_num_threads(threads)


def test_models_are_identified_by_their_weights_not_by_their_path(held: BackendCache, tmp_path: Path) -> None:
    embedded = Path(build_backends(load_recipe("tiny"), held).captioner.models["openavs:tiny/clap"]["path"])
    copy = tmp_path / "clap"
    copy.mkdir()
    for file in embedded.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert folder_digest(copy) == folder_digest(embedded)
    assert fingerprint({}, f"captioner.model={copy}") == fingerprint(held)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert fingerprint({}, f"captioner.model={copy}") != fingerprint(held)


def test_large_files_are_distinguished_by_samples(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(20_000_000))
    before = folder_digest(tmp_path)
    file.write_bytes(bytes(10_000_000) + b"\1" * 10_000_000)
    assert folder_digest(tmp_path) != before


def test_an_edited_plug_in_is_another_stage(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path))

    def own() -> str:
        cls, options = check_backends(recipe)["captioner"]
        return stage_fingerprint(cls(**options), cls, options)

    before = own()
    source = tmp_path / "stages.py"
    source.write_text(source.read_text().replace('"dog", 0.9', '"dog", 0.8'))
    assert own() != before


def test_options_are_hashed_by_value_and_by_file_content(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("dog")

    def of(options: dict[str, Any]) -> str:
        return stage_fingerprint(object(), object, options)

    before = of({"files": {"words": str(tmp_path / "words.txt")}, "top": [1, 2]})
    assert before == of({"top": [1, 2], "files": {"words": str(tmp_path / "words.txt")}})
    assert before != of({"files": {"words": str(tmp_path / "words.txt")}, "top": [2, 1]})
    (tmp_path / "words.txt").write_text("cat")
    assert before != of({"files": {"words": str(tmp_path / "words.txt")}, "top": [1, 2]})


def test_answers_of_one_device_are_not_those_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Local:
        models = {"here": {"path": str(tmp_path)}}  # noqa: RUF012

    def on(device: str) -> str:
        resolve_device.cache_clear()
        return stage_fingerprint(Local(), Local, {"device": device})

    cpu, own = on("cpu"), on("a plug-in's own")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    names = iter(["one GPU", "another GPU"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: next(names))
    one, another = on("cuda:0"), on("cuda:0")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert len({cpu, own, one, another, on("mps")}) == 5
    resolve_device.cache_clear()
