"""Overrides of recipes with one verifier or several."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from openavs.config.recipe import Recipe, is_recipe_key, load_recipe, override_recipe, stage_of
from openavs.errors import InputError

CLIP = "{use: clip, model: DIR}"
TWO = f"verifier=[{CLIP}, {{use: ./mine.py:Mine, threshold: 0.5}}]"


def uses(recipe: Recipe) -> dict[str, str]:
    return {key: section.use for key, section in recipe.stages().items() if stage_of(key) == "verifier"}


@pytest.mark.parametrize(
    ("value", "keys", "written"),
    [
        ("null", {}, None),
        ("[]", {}, None),
        (CLIP, {"verifier": "clip"}, {"use": "clip", "model": "DIR"}),
        (f"[{CLIP}]", {"verifier": "clip"}, {"use": "clip", "model": "DIR"}),
        (
            f"[{CLIP}, {{use: other}}]",
            {"verifier.1": "clip", "verifier.2": "other"},
            [{"use": "clip", "model": "DIR"}, {"use": "other"}],
        ),
    ],
)
def test_verifiers_are_written_in_the_simplest_form_and_read_back(
    value: str, keys: dict[str, str], written: object, tmp_path: Path
) -> None:
    recipe = load_recipe("tiny", [f"verifier={value}"])
    assert uses(recipe) == keys
    assert recipe.to_dict()["verifier"] == written
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml").to_dict() == recipe.to_dict()


def test_verifiers_run_between_segmenter_and_tracker() -> None:
    recipe = load_recipe("tiny", [TWO, "tracker={use: iou}"])
    assert list(recipe.stages())[3:] == ["segmenter", "verifier.1", "verifier.2", "tracker"]
    assert recipe.models()["verifier.1"] == "DIR" and "verifier.2" not in recipe.models()


def test_one_of_several_verifiers_is_overridden_by_its_number() -> None:
    recipe = override_recipe(load_recipe("tiny", [TWO]), ["verifier.2.threshold=0.3", "verifier.1.model=OTHER"])
    assert [section.options for section in recipe.verifiers] == [{"model": "OTHER"}, {"threshold": 0.3}]
    changed = override_recipe(recipe, ["verifier.2.share=0.5", "verifier.2.use=./mine.py:Other"])
    assert changed.verifiers[1].model_dump() == {"use": "./mine.py:Other", "share": 0.5}
    assert changed.verifiers[0] == recipe.verifiers[0]
    assert override_recipe(recipe, ["verifier.2={use: clip}"]).verifiers[1].model_dump() == {"use": "clip"}
    assert override_recipe(recipe, ["verifier=null"]).verifiers == ()


def test_a_list_of_one_in_a_file_is_overridden_as_one(tmp_path: Path) -> None:
    data = load_recipe("tiny").to_dict() | {"verifier": [{"use": "clip", "model": "DIR"}]}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(data))
    [verifier] = load_recipe(tmp_path / "one.yaml", ["verifier.threshold=0.3"]).verifiers
    assert verifier.options == {"model": "DIR", "threshold": 0.3}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            [TWO, "verifier.threshold=0.3"],
            "'verifier' is a list of 2; write verifier.NUMBER, with a number from 1 to 2",
        ),
        ([TWO, "verifier.use=clip"], "'verifier' is a list of 2; write verifier.NUMBER, with a number from 1 to 2"),
        ([TWO, "verifier.3.threshold=0"], "'verifier' is a list of 2; write verifier.NUMBER"),
        ([TWO, "verifier.0.use=clip"], "'verifier' is a list of 2; write verifier.NUMBER"),
        ([TWO, "verifier.2.use.deeper=1"], "'use' is not a section"),
        (["verifier=3"], "'verifier' must be a section of keys and values, not 3 (a number)"),
        (["verifier={model: DIR}"], "the key 'verifier.use' is missing"),
        (["verifier.use=3"], "'verifier.use' must be text, not 3 (a number); write it in quotes"),
        ([f"verifier=[{CLIP}, 3]"], "'verifier.2' must be a section of keys and values, not 3 (a number)"),
        ([f"verifier=[{CLIP}, {{model: DIR}}]"], "the key 'verifier.2.use' is missing"),
        ([TWO, "verifier.2.token=x"], "the verifier.2's option 'token' would be saved with every result"),
        (["vocabulary=[dog]", "vocabulary.1=cat"], "'vocabulary' is not a section"),
    ],
)
def test_a_wrong_override_of_verifiers_is_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("tiny", overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_of_one_of_several_verifiers_are_recipe_keys() -> None:
    assert all(map(is_recipe_key, ("verifier.threshold", "verifier.2.threshold")))
    assert not any(map(is_recipe_key, ("verifier.2", "verifier.a.b", "verifier.2.mp4.gz", "filtering.2.box_threshold")))


def test_a_minimum_verifier_score_is_allowed_with_several_verifiers() -> None:
    assert load_recipe("tiny", [TWO, "label_filter.min_verifier_score=0.5"]).label_filter.min_verifier_score == 0.5
