"""`openavs list` and `openavs show`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from openavs import __version__
from openavs.config import resources
from openavs.config.recipe import load_recipe
from openavs.pipeline.memory_estimate import choose_recipe
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
    assert default["license"].startswith("Apache-2.0")
    assert default["models"]["segmenter"].startswith("hf:facebook/")


def test_list_as_text(openavs: Run) -> None:
    recipes, backends = openavs("list", "recipes").out, openavs("list", "backends").out
    for name in (*resources.names("pipelines"), "license: Apache-2.0"):
        assert name in recipes
    assert "grounding-dino" in backends and "lexicon" in backends
    assert "Backends" not in recipes and "Recipes" not in backends


def test_list_has_one_line_a_recipe_by_machine(openavs: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    done = openavs("list")
    assert done.code == 0
    assert done.out.startswith(f"The default recipe of this machine is {choose_recipe().name} (")
    words = {line.split()[0]: line.split() for line in done.out.splitlines() if line.startswith("  ")}
    assert set(words) == set(resources.names("pipelines"))
    assert words["openavs-cpu"][1:6] == ["1.7", "GB", "to", "download", "permissive"]
    assert words["tiny"][1] == "ready" and words["sam3"][5] == "gated"
    assert done.out.index("laptop CPU\n") < done.out.index("  tiny") < done.out.index("GPU with 8 GB\n")
    for name in ("recipes", "backends", "benchmarks", "studies"):
        assert f"openavs list {name}" in done.out


def test_an_unknown_target_is_wrong_usage(openavs: Run) -> None:
    wrong = openavs("list", "birds")
    assert wrong.code == 2
    assert "Invalid value for 'target': 'birds' is not one of 'recipes'" in wrong.err


def test_show_prints_the_recipe_file(openavs: Run) -> None:
    done = openavs("show", "tiny")
    assert done.code == 0
    assert done.out.strip() == resources.find("pipelines", "tiny").read_text(encoding="utf-8").strip()
    assert openavs("show", "tiny", "--json").json()["recipe"] == load_recipe("tiny").to_dict()


def test_show_with_overrides_prints_a_runnable_recipe(openavs: Run, tmp_path: Path) -> None:
    done = openavs("show", "tiny", "filtering.box_threshold=0.4")
    saved = tmp_path / "saved.yaml"
    saved.write_text(done.out, encoding="utf-8")
    assert load_recipe(saved).filtering.box_threshold == 0.4
    assert openavs("show", saved).code == 0


def test_show_a_prompt_and_a_backend(openavs: Run) -> None:
    assert openavs("show", "default").out.startswith("name: default")
    shown = openavs("show", "sam", "--json").json()
    assert (shown["kind"], shown["stage"]) == ("backend", "segmenter")
    assert "model" in shown["options"]
    assert "model" in openavs("show", "sam").out


def test_show_includes_the_compile_option(openavs: Run) -> None:
    assert "  compile: bool | str = False" in openavs("show", "grounding-dino").out
    assert openavs("show", "sam", "--json").json()["options"]["compile"] is False
    assert "compile" not in openavs("show", "lexicon", "--json").json()["options"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tinny"], "unknown recipe, prompt or backend 'tinny'; did you mean 'tiny'?"),
        (
            ["zebra"],
            "unknown recipe, prompt or backend 'zebra'; 'openavs list' lists recipes, 'openavs list backends' backends",
        ),
        (["./absent.yaml"], "the recipe file './absent.yaml' does not exist"),
        (["tiny", "filtering.box_treshold=1"], "did you mean 'box_threshold'?"),
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


def test_list_has_the_state_and_license_of_weights(
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
    clap = load_recipe("openavs-cpu").models()["captioner"]
    facts = found["openavs-cpu"][clap]
    assert [facts[key] for key in ("state", "license", "permissive", "size_gb")] == [
        "missing",
        "Apache-2.0",
        "yes",
        0.6,
    ]
    assert found["openavs-cpu"]["hf:facebook/sam3@main"]["permissive"] == "no"
    printed = openavs("list", "recipes").out
    assert "hf:facebook/sam3@main (3.4 GB to download; NOT PERMISSIVE: SAM License, gated)" in printed
    assert f"{clap} (0.6 GB to download)" in printed


def test_recipes_are_grouped_by_machine_and_license(openavs: Run) -> None:
    found = {recipe["name"]: recipe for recipe in openavs("list", "recipes", "--json").json()["recipes"]}
    machines = {name: recipe["machine"] for name, recipe in found.items()}
    assert {name for name in machines if machines[name] == "laptop CPU"} >= {"tiny", "openavs-fast", "openavs-cpu"}
    assert machines["box-prompt"] == "GPU with 8 GB" and machines["openavs"] == "GPU with 16 GB"
    assert machines["openavs-av"] == "GPU with 24 GB" and machines["paper"] == "server"
    licenses = {name: recipe["license_class"] for name, recipe in found.items()}
    assert licenses["openavs-fast"] == "permissive" and licenses["sam3"] == "gated"
    assert licenses["mm-grounding-dino"] == "see model cards"
    lines = openavs("list", "recipes").out.splitlines()
    headings = [line for line in lines if line in set(machines.values())]
    assert len(headings) == len(set(headings)) and headings[0] == "laptop CPU" and headings[-1] == "server"
    assert sum(line.startswith("    license: ") and line.endswith("(gated)") for line in lines) >= 1


def test_list_has_the_installed_extras(openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
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
