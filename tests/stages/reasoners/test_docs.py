"""The page on reasoners: YAML sections, backend names and options."""

from __future__ import annotations

import inspect
import re

import pytest
import yaml

from openavs.config.options import options_of
from openavs.config.recipe import load_recipe, recipe_from_dict
from openavs.registry import Registry, check_backends
from tests.docs.reading import text_of

PAGE = text_of("reasoners.md")


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
def test_its_sections_make_valid_recipes(block: str) -> None:
    check_backends(recipe_from_dict({**load_recipe("tiny").to_dict(), **yaml.safe_load(block)}))


def test_its_table_names_every_backend_and_their_common_options_with_defaults() -> None:
    named = set(re.findall(r"^\| reasoner \| `([\w-]+)` \|", PAGE, re.MULTILINE))
    assert named == set(Registry("reasoner").names())
    options = dict(re.findall(r"^\| `(\w+)` \| ([\w-]+) \|", PAGE, re.MULTILINE))
    for name in named:
        parameters, _ = options_of(Registry("reasoner").load(name))
        for option, default in options.items():
            if option in ("accept", "unsure", "reject"):
                continue
            value = parameters[option].default
            assert default == ("-" if value is inspect.Parameter.empty else yaml.safe_dump(value).split("\n")[0]), (
                option
            )
