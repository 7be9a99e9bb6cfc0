"""docs/commands/ is what its script writes, every command has a page with examples, and the index lists them all."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from openavs.cli.app import COMMANDS
from tests.docs.reading import DOCS


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("command_pages", DOCS / "scripts" / "command_pages.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(script: ModuleType) -> None:
    committed = {path.name: path.read_text("utf-8") for path in (DOCS / "commands").glob("*.md")}
    assert committed == script.pages(), "run: python docs/scripts/command_pages.py"


def test_every_command_has_examples_and_is_in_the_site(script: ModuleType) -> None:
    site = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    for name in COMMANDS:
        file, page = script.file_of(name), script.pages()[script.file_of(name)]
        assert "## Examples" in page and f"openavs {name} " in page.split("## Examples")[1], name
        assert f"commands/{file}" in site, f"add commands/{file} to the nav of mkdocs.yml"


def test_pages_contain_the_help_texts(script: ModuleType) -> None:
    page = script.pages()["segment.md"]
    assert "| `--out PATH` | Output folder. Running the command again resumes it. Default: `out`. |" in page
    assert "| `--quiet`, `-q` | Print errors only. |" in page
    assert "(see `openavs list`)" in page
    label = script.pages()["label.md"]
    assert "openavs label SOURCE [KEY=VALUE...] --out PATH [OPTIONS]" in label
    assert "| `--executor local or ray` |" in label and "| `--no-cache` | Do not reuse outputs" in label
