"""Which recipes the page offers, and what it says of their models."""

from __future__ import annotations

from pathlib import Path

import pytest

from openavs.recipes import load_recipe
from openavs.types import InputError
from openavs.web.menu import Offer, is_here, offers
from openavs.web.settings import Settings


def test_tiny_is_always_offered_with_its_licences() -> None:
    tiny = offers(Settings())["tiny"]
    assert tiny.only_synthetic
    assert tiny.threshold == load_recipe("tiny").keep.box_threshold
    assert [(m.stage, m.licence) for m in tiny.models] == [
        (stage, "Apache-2.0") for stage in ("captioner", "translator", "detector", "segmenter")
    ]


def test_the_named_recipe_comes_first_and_others_only_if_their_models_are_here(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(load_recipe("tiny", ["name=mine", "keep.box_threshold=0.3"]).to_yaml())
    found = offers(Settings(pipeline=str(own), device="cpu"))
    assert next(iter(found)) == "mine"
    assert found["mine"].threshold == 0.3
    assert found["mine"].recipe.device == "cpu"
    assert "tiny" in found
    assert not {"oracle", "paper", "sam3"} & set(found)  # labels of a benchmark, a server, a gated model


def test_a_recipe_that_asks_a_server_is_not_offered_unasked() -> None:
    server = load_recipe("tiny", ["translator={use: openai, model: gpt-4o, base_url: 'http://127.0.0.1:9'}"])
    assert not is_here(server)
    assert Offer(server, ()).asks_a_server
    assert not Offer(load_recipe("tiny"), ()).asks_a_server
    assert is_here(load_recipe("tiny"))
    assert not is_here(load_recipe("tiny", ["detector.model=/no/such/folder"]))


def test_a_recipe_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match="there is no recipe 'tinny'"):
        offers(Settings(pipeline="tinny"))
