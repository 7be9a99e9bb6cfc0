"""What there is, what it looks like, and whether this machine can run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from openavs import __version__, resources
from openavs.recipes import load_recipe
from openavs.registry import STAGES, Registry
from tests.conftest import Outcome

Run = Callable[..., Outcome]


def test_list_names_every_recipe_and_backend(openavs: Run) -> None:
    done = openavs("list", "--json")
    assert done.code == 0
    found = done.json()
    assert {recipe["name"] for recipe in found["recipes"]} == set(resources.names("pipelines"))
    assert {(entry["stage"], entry["name"]) for entry in found["backends"]} == {
        (stage, name) for stage in STAGES for name in Registry(stage).names()
    }
    default = next(recipe for recipe in found["recipes"] if recipe["name"] == "openavs")
    assert default["licence"].startswith("Apache-2.0")
    assert default["models"]["segmenter"].startswith("hf:facebook/")


def test_list_in_words(openavs: Run) -> None:
    done = openavs("list")
    assert done.code == 0
    for name in (*resources.names("pipelines"), "grounding-dino", "lexicon", "licence: Apache-2.0"):
        assert name in done.out
    assert "Backends" not in openavs("list", "recipes").out
    assert "Recipes" not in openavs("list", "backends").out


def test_list_of_something_else_is_wrong_usage(openavs: Run) -> None:
    assert openavs("list", "birds").code == 2


def test_show_prints_the_recipe_as_it_was_written(openavs: Run) -> None:
    done = openavs("show", "tiny")
    assert done.code == 0
    assert done.out.strip() == resources.find("pipelines", "tiny").read_text(encoding="utf-8").strip()
    assert openavs("show", "tiny", "--json").json()["recipe"] == load_recipe("tiny").to_dict()


def test_show_with_overrides_prints_a_recipe_that_can_be_run(openavs: Run, tmp_path: Path) -> None:
    done = openavs("show", "tiny", "keep.box_threshold=0.4")
    saved = tmp_path / "saved.yaml"
    saved.write_text(done.out, encoding="utf-8")
    assert load_recipe(saved).keep.box_threshold == 0.4
    assert openavs("show", saved).code == 0


def test_show_a_prompt_and_a_backend(openavs: Run) -> None:
    assert openavs("show", "default").out.startswith("name: default")
    shown = openavs("show", "sam", "--json").json()
    assert (shown["kind"], shown["stage"]) == ("backend", "segmenter")
    assert "model" in shown["options"]
    assert "model" in openavs("show", "sam").out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tinny"], "there is no recipe, prompt or backend 'tinny'; did you mean 'tiny'?"),
        (["./absent.yaml"], "the recipe file './absent.yaml' does not exist"),
        (["tiny", "keep.box_treshold=1"], "did you mean 'box_threshold'?"),
        (["tinny", "offline=true"], "there is no recipe 'tinny'; did you mean 'tiny'?"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(openavs: Run, arguments: list[str], sentence: str) -> None:
    done = openavs("show", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("openavs: ")
    assert sentence in done.err
    assert len(done.err.splitlines()) == 1


def test_wrong_usage_is_exit_code_2(openavs: Run) -> None:
    assert openavs("lisst").code == 2
    assert openavs("show").code == 2
    assert openavs("list", "--jsn").code == 2


def test_version(openavs: Run) -> None:
    done = openavs("--version")
    assert (done.code, done.out) == (0, f"openavs {__version__}\n")


def test_check_says_what_is_here_and_what_is_not(openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    done = openavs("check", "--json")
    found = done.json()
    assert done.code == (0 if found["ready"] else 1)
    assert {"python", "torch", "device", "memory", "codecs", "disk"} <= {item["topic"] for item in found["machine"]}
    assert all(item["says"] and item["state"] in {"ok", "note", "problem"} for item in found["machine"])
    recipes = {item["recipe"]: item for item in found["recipes"]}
    assert set(recipes) == set(resources.names("pipelines"))
    assert set(recipes["openavs"]["models"].values()) == {"missing"}
    assert recipes["openavs"]["state"] == "note"
    assert "hf download facebook/sam2.1-hiera-large" in recipes["openavs"]["says"]


def test_check_knows_the_embedded_models(openavs: Run) -> None:
    found = {item["recipe"]: item for item in openavs("check", "--json").json()["recipes"]}
    tiny = found["tiny"]
    assert set(tiny["models"]) == set(load_recipe("tiny").models().values())
    assert tiny["state"] == ("ok" if set(tiny["models"].values()) == {"embedded"} else "problem")


def test_list_says_where_weights_are_and_what_they_may_be_used_for(
    openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tiny", "openavs-cpu"):
        text = resources.find("pipelines", name).read_text(encoding="utf-8")
        text = text.replace("hf:facebook/sam-vit-base@main", "hf:facebook/sam3@main")
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(resources, "folders", lambda kind: [tmp_path] if kind == "pipelines" else [])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    found = {recipe["name"]: recipe["weights"] for recipe in openavs("list", "recipes", "--json").json()["recipes"]}
    assert {facts["state"] for facts in found["tiny"].values()} == {"embedded"}
    assert found["openavs-cpu"]["hf:laion/clap-htsat-fused@main"] == {
        "licence": "Apache-2.0",
        "permissive": "yes",
        "download_gb": 0.6,
        "state": "to download",
    }
    assert found["openavs-cpu"]["hf:facebook/sam3@main"]["permissive"] == "no"
    printed = openavs("list", "recipes").out
    assert "hf:facebook/sam3@main (3.4 GB to download; NOT PERMISSIVE: SAM License, gated)" in printed
    assert "hf:laion/clap-htsat-fused@main (0.6 GB to download)" in printed


def test_list_and_check_know_which_extras_are_installed(openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    versions = {"segment-anything": "1.0", "groundingdino-py": "0.1.0"}

    def version(package: str) -> str:
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(metadata, "version", version)
    backends = {entry["name"]: entry["installed"] for entry in openavs("list", "backends", "--json").json()["backends"]}
    assert (backends["sam"], backends["segment-anything"], backends["groundingdino-py"]) == ("core", "1.0", "0.1.0")
    assert backends["laion-clap"] is None
    assert 'pip install "openavs[laion-clap]"' in openavs("list", "backends").out
    extras = {item["extra"]: item for item in openavs("check", "--json").json()["machine"] if item["topic"] == "extra"}
    assert extras["segment-anything"]["says"] == "Extra segment-anything: segment-anything 1.0 is installed."
    assert extras["groundingdino"]["state"] == "note"
    assert "if it fails: pip install groundingdino-py==0.4.0" in extras["groundingdino"]["says"]
    assert "numpy<2" in extras["laion-clap"]["says"]


def test_check_finds_a_torchvision_that_would_break_transformers(
    openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a build for another torch does: installed, and an error as soon as it is imported."""
    from transformers.utils import is_torchvision_available

    assert not is_torchvision_available()  # transformers remembers this, for the tests that follow
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.28.0.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.28.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    done = openavs("check", "--json")
    (found,) = [item for item in done.json()["machine"] if item["topic"] == "torchvision"]
    assert done.code == 1 and found["state"] == "problem"
    assert "0.28.0 does not fit the installed torch" in found["says"] and "pip uninstall torchvision" in found["says"]


def test_check_in_words_ends_with_the_verdict(openavs: Run) -> None:
    done = openavs("check")
    assert done.out.rstrip().splitlines()[-1] in ("This machine is ready.", "Not ready: mend the problems above.")
