"""The page on verifiers: YAML sections and backend names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from openavs.config.recipe import load_recipe, recipe_from_dict
from openavs.registry import Registry, check_backends

PAGE = (Path(__file__).parents[3] / "docs" / "verifiers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
def test_its_sections_make_valid_recipes(block: str) -> None:
    data = {**load_recipe("openavs").to_dict(), **yaml.safe_load(block)}
    check_backends(recipe_from_dict(data))


def test_its_table_names_every_backend() -> None:
    for name in Registry("verifier").names():
        assert re.search(rf"^\| verifier \| `{name}` \|", PAGE, re.MULTILINE), name
