"""Paths and test names in the documentation and in pyproject.toml exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.reading import PAGES

FILES = {**PAGES, "SECURITY.md": ROOT / "SECURITY.md"}
TOP = "tests|eval|docs|openavs|scripts|pipelines|prompts|examples"
INSIDE = "|".join(sorted(path.parent.name for path in (ROOT / "openavs").glob("*/__init__.py")))


@pytest.mark.parametrize("page", FILES)
def test_paths_in_code_spans_and_commands_exist(page: str) -> None:
    text = FILES[page].read_text(encoding="utf-8")
    paths = re.findall(rf"`((?:{TOP})/[^`\s*<>{{}}]*)`", text)
    paths += re.findall(rf"python ((?:{TOP})/\S+\.py)", text)
    paths += [f"openavs/{path}" for path in re.findall(rf"`((?:{INSIDE})/[\w/]+\.py)`", text)]
    for path, _, test in (path.partition("::") for path in paths):
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"


def test_files_of_the_mutation_tests_exist() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    for path in [*settings["only_mutate"], *settings["pytest_add_cli_args_test_selection"]]:
        assert Path(ROOT / path).is_file(), path
