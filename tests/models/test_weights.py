"""Weights of a model in openavs, the hub's cache or a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openavs.checks.recipe_check import check_recipe
from openavs.config.recipe import load_recipe
from openavs.models.catalog import find_plugin_weights, find_weights
from openavs.models.hub import is_pinned
from tests.plugin_recipe import write_recipe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TINY = Path(__file__).resolve().parents[2] / "openavs" / "assets" / "tiny" / "clap"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def cached(cache: Path, name: str) -> Path:
    """The snapshot folder of a model whose branch main is at COMMIT."""
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def test_a_cached_model_has_its_commit_and_size(cache: Path) -> None:
    shutil.copytree(TINY, cached(cache, "org/whole"), dirs_exist_ok=True)
    found = find_weights("hf:org/whole@main")
    assert (found.state, found.revision, found.pinned, found.available) == ("cached", COMMIT, False, True)
    assert found.size_gb == pytest.approx(sum(file.stat().st_size for file in TINY.iterdir()) / 1e9, abs=1e-3)


def test_an_interrupted_download_is_partial(cache: Path) -> None:
    (cached(cache, "org/begun") / "config.json").write_text("{}")
    found = find_weights("hf:org/begun@main")
    assert (found.state, found.available) == ("partial", False)
    assert find_weights("hf:org/never@main").state == "missing"


def test_local_folders(tmp_path: Path) -> None:
    assert find_weights(str(TINY)).state == "local"
    (tmp_path / "config.json").write_text("{}")
    lacking = find_weights(str(tmp_path))
    assert lacking.state == "partial" and "no *.safetensors" in lacking.reason
    assert find_weights(str(tmp_path / "gone")).state == "missing"


def test_the_model_of_a_plug_in_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"x" * 2_000_000)
    there = find_plugin_weights(str(tmp_path / "net.pt"), "captioner")
    assert (there.state, there.size_gb, there.reason) == ("local", 0.002, "")
    gone = find_plugin_weights("./models/net.pt", "captioner")
    assert gone.state == "missing"
    assert gone.reason == (
        "the model file ./models/net.pt does not exist; put it beside the recipe, or set captioner.model=FILE"
    )
    assert find_plugin_weights(str(tmp_path), "captioner").state == "local"
    assert find_plugin_weights("hf:org/never@main", "captioner").reason == find_weights("hf:org/never@main").reason


def test_a_recipe_of_plug_ins_is_ready_if_its_files_exist(openavs: Callable[..., Any], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, captioner={"use": "./stages.py:Ear", "model": "./net.pt"}, license="MIT (net)")
    lacking = openavs("check", "--pipeline", recipe)
    assert "the model file ./net.pt does not exist" in lacking.out
    assert "model folder" not in lacking.out and "hf:" not in lacking.out
    (tmp_path / "net.pt").write_bytes(b"x")
    ready = openavs("check", "--pipeline", recipe)
    assert "its model is on this disk" in ready.out
    assert "licenses stated by the recipe: MIT (net)" in ready.out


def test_facts_of_a_model_before_its_download() -> None:
    found = find_weights("hf:facebook/sam3@main")
    assert found.gated and found.permissive == "no" and found.size_gb == 3.4
    assert find_weights(f"hf:facebook/sam3@{COMMIT}").download.startswith(
        f"hf download facebook/sam3 --revision {COMMIT} "
    )


def test_only_a_commit_pins() -> None:
    assert is_pinned(f"hf:org/name@{COMMIT}") and is_pinned("openavs:tiny/clap")
    assert not any(map(is_pinned, ("hf:org/name@main", "hf:org/name", "./folder", f"./folder@{COMMIT}")))


def test_weights_of_the_converters_pull_request_are_reported(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`resolve` leaves a ref to the pull request's commit in the cache; main has no safetensors."""
    (cached(cache, "org/pickled") / "config.json").write_text("{}")
    assert "no safetensors" in find_weights("hf:org/pickled").reason
    model = cache / "models--org--pickled"
    converted = "f" * 40
    shutil.copytree(TINY, model / "snapshots" / converted)
    (model / "refs" / "openavs").mkdir()
    (model / "refs" / "openavs" / "converted").write_text(converted)
    found = find_weights("hf:org/pickled@main")
    assert (found.state, found.revision, found.converted) == ("cached", converted, True)
    recipe = load_recipe("tiny", ["captioner.model=hf:org/pickled@main"])
    assert (
        "hf:org/pickled@main has no safetensors on main; the hub converter's pull"
        in check_recipe(recipe, cache).result.message
    )


def test_gated_weights_need_a_request_for_access(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "may take days to answer and may refuse" in check_recipe(load_recipe("sam3"), cache).result.fix
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    assert (
        "hf:facebook/sam3@main is gated: request access at its page"
        in check_recipe(load_recipe("sam3"), cache).result.message
    )
