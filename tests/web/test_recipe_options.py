"""Recipes that the page offers, and their models."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch

from openavs.config.recipe import load_recipe
from openavs.errors import InputError
from openavs.models.hub import resolve
from openavs.training.io import write_student
from openavs.utils.optional_deps import EXTRAS
from openavs.web import ServerConfig
from openavs.web.inference import RecipeOption, is_runnable, recipe_options


def test_tiny_is_always_offered_with_its_licenses() -> None:
    tiny = recipe_options(ServerConfig())["tiny"]
    assert tiny.only_synthetic
    assert tiny.threshold == load_recipe("tiny").filtering.box_threshold
    assert [(m.stage, m.license) for m in tiny.models] == [
        (stage, "Apache-2.0") for stage in ("captioner", "translator", "detector", "segmenter")
    ]


def test_the_named_recipe_is_first_and_others_need_local_models(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(load_recipe("tiny", ["name=mine", "filtering.box_threshold=0.3"]).to_yaml())
    found = recipe_options(ServerConfig(pipeline=str(own), device="cpu"))
    assert next(iter(found)) == "mine"
    assert found["mine"].threshold == 0.3
    assert found["mine"].recipe.device == "cpu"
    assert "tiny" in found
    assert not {"oracle", "paper", "sam3"} & set(found)  # labels of a benchmark, a server, a gated model


def test_a_recipe_with_a_remote_server_must_be_named() -> None:
    server = load_recipe("tiny", ["translator={use: openai, model: gpt-4o, base_url: 'http://127.0.0.1:9'}"])
    assert not is_runnable(server)
    assert RecipeOption(server, ()).uses_remote_server
    assert not RecipeOption(load_recipe("tiny"), ()).uses_remote_server
    assert is_runnable(load_recipe("tiny"))
    assert not is_runnable(load_recipe("tiny", ["detector.model=/no/such/folder"]))


def test_the_error_names_an_unknown_recipe() -> None:
    with pytest.raises(InputError, match="there is no recipe 'tinny'"):
        recipe_options(ServerConfig(pipeline="tinny"))


def test_a_recipe_without_its_package_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == EXTRAS["segment-anything"].package:
            raise metadata.PackageNotFoundError(package)
        return "1.0"

    other = load_recipe("tiny", ["segmenter.use=segment-anything"])
    monkeypatch.setattr(metadata, "version", version)
    assert not is_runnable(other)


def test_overrides_change_only_the_named_recipe() -> None:
    found = recipe_options(ServerConfig(overrides=("filtering.box_threshold=0.41", "name=mine")))
    assert [found[name].threshold for name in ("mine", "tiny")] == [0.41, load_recipe("tiny").filtering.box_threshold]
    with pytest.raises(InputError, match=r"box_thresold.*did you mean"):
        recipe_options(ServerConfig(overrides=("filtering.box_thresold=0.41",)))


def test_the_total_limit_fits_one_upload_at_least() -> None:
    assert ServerConfig(max_upload_mb=30).max_total == 300 << 20
    assert ServerConfig(max_upload_mb=30, max_total_mb=50).max_total == 50 << 20
    with pytest.raises(InputError, match=r"--max-total-mb 20 is smaller than one upload of 30 MB; raise it, or lower"):
        ServerConfig(max_upload_mb=30, max_total_mb=20)


def test_a_student_is_refused(tmp_path: Path) -> None:
    write_student(tmp_path / "mine", "tpavi", {}, {}, {"weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"mine is a trained student, which has no captions to show; give a recipe"):
        recipe_options(ServerConfig(pipeline=f"student:{tmp_path / 'mine'}"))


def test_local_models_have_the_name_of_their_folder(tmp_path: Path) -> None:
    embedded = load_recipe("tiny").models()["segmenter"]
    shutil.copytree(resolve(embedded).path, tmp_path / "my-sam")
    (tmp_path / "my-sam" / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    own = tmp_path / "mine.yaml"
    own.write_text(load_recipe("tiny", ["name=mine", f"segmenter.model={tmp_path / 'my-sam'}"]).to_yaml())
    models = {model.stage: model for model in recipe_options(ServerConfig(pipeline=str(own)))["mine"].models}
    assert (models["segmenter"].title, models["segmenter"].license) == ("my-sam", "mit")
    shutil.rmtree(tmp_path / "my-sam")
    models = {model.stage: model for model in recipe_options(ServerConfig(pipeline=str(own)))["mine"].models}
    assert (models["segmenter"].title, models["segmenter"].license) == ("my-sam", "not stated")
