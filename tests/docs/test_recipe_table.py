"""docs/recipes.md equals the output of its script and describes every model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from openavs.config import resources
from openavs.config.recipe import Recipe, load_recipe, recipe_from_dict
from openavs.models import catalog as known_models
from openavs.models.catalog import find_known_model
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_table", ROOT / "docs" / "scripts" / "recipe_table.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(name: str, **stages: dict[str, str]) -> Recipe:
    """Return a shipped recipe with other stages."""
    return recipe_from_dict(load_recipe(name).to_dict() | stages)


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    written = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert written == script.page(script.all_recipes()), "run: python docs/scripts/recipe_table.py"


def test_every_recipe_and_every_model_is_on_it(script: ModuleType) -> None:
    page, short = script.page(script.all_recipes()), script.readme(script.all_recipes())
    for recipe in map(load_recipe, resources.names("pipelines")):
        assert f"| `{recipe.name}` |" in page and f"| `{recipe.name}` |" in short
        for model in recipe.models().values():
            assert f"| `{model}` |" in page


def test_licenses_agree_with_the_recipes_own_words() -> None:
    for recipe in map(load_recipe, resources.names("pipelines")):
        for model in recipe.models().values():
            known = find_known_model(model)
            assert known is not None, f"add a line about {model} to openavs/assets/tables/models.tsv"
            if known.permissive == "yes":
                assert known.license in (recipe.license or ""), f"{recipe.name} does not state the license of {model}"


def test_weights_that_are_not_permissive_are_named_as_such(script: ModuleType) -> None:
    recipe = changed("openavs-cpu", segmenter={"use": "sam", "model": "hf:facebook/sam3@main"})
    assert "| SAM 3 | Apache-2.0, **SAM License, gated** |" in script.readme([recipe])
    assert "| SAM 3 | `hf:facebook/sam3@main` | SAM License, gated (**not permissive**) |" in script.page([recipe])


def test_an_undescribed_model_stops_the_script(script: ModuleType) -> None:
    recipe = changed("openavs-cpu", segmenter={"use": "sam", "model": "hf:org/new@main"})
    with pytest.raises(SystemExit, match=r"hf:org/new@main: add a line about it to openavs/assets/tables/models\.tsv"):
        script.page([recipe])


def test_sizes_are_sums_over_the_weights(script: ModuleType) -> None:
    """CLAP 153.5 M, Grounding DINO tiny 172.3 M, SAM ViT-B 93.7 M: 419.5 M, each once."""
    recipe = load_recipe("openavs-cpu")
    assert script.sizes(recipe) == ["`openavs-cpu`", "1.7 GB", "1.7 GB", "0.8 GB"]
    exact = changed("openavs-cpu", detector={**recipe.to_dict()["detector"], "dtype": "float32"})
    assert script.memory(exact, 2) == pytest.approx((153.5 * 2 + 172.3 * 4 + 93.7 * 2) / 1000)
    assert script.sizes(load_recipe("tiny"))[1:] == ["none", "20 MB", "10 MB"]


def test_embedded_models_are_counted_in_whatever_type_they_are_stored() -> None:
    stored = set()
    for name in ("clap", "sam"):
        tensors = load_file(ROOT / "openavs" / "assets" / "tiny" / name / "model.safetensors")
        stored |= {tensor.dtype for tensor in tensors.values()}
        known = find_known_model(f"openavs:tiny/{name}")
        assert known is not None
        assert known.parameters * 1e6 == pytest.approx(sum(tensor.numel() for tensor in tensors.values()))
    assert {torch.float16, torch.float32} <= stored


def test_a_row_of_the_table_that_says_something_else_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models.tsv").write_text("# name\n\norg/model\tA model\tMIT\tperhaps\t1.0\t2.0\tfast\n")
    monkeypatch.setattr(known_models, "_TABLE", tmp_path / "models.tsv")
    monkeypatch.setattr(known_models, "_listed", known_models._listed.__wrapped__)
    with pytest.raises(ValueError, match="org/model is permissive 'yes', 'no' or 'unknown', not 'perhaps'"):
        find_known_model("hf:org/model")


def test_what_is_known_of_a_model() -> None:
    sam = find_known_model("hf:facebook/sam-vit-huge@main")
    assert sam is not None and (sam.title, sam.license, sam.permissive) == ("SAM ViT-H", "Apache-2.0", "yes")
    assert sam.memory(4) == pytest.approx(sam.download, abs=0.05)
    assert (
        find_known_model("hf:facebook/sam-vit-huge") == find_known_model(f"hf:facebook/sam-vit-huge@{'0' * 40}") == sam
    )
    tiny = find_known_model("openavs:tiny/sam")
    assert tiny is not None and tiny.download == 0
    assert (sam.speed, tiny.speed) == ("slow", "fast")
    assert find_known_model("openavs:tiny/none") is None and find_known_model("/some/folder") is None
