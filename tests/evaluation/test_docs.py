"""docs/benchmarks.md: commands, options, studies and links exist, and its Python compiles."""

from __future__ import annotations

import re
import shlex

import pytest
import typer

from openavs.cli.app import app
from openavs.evaluation.benchmark import load_benchmark
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
COMMANDS = re.findall(r"^openavs .+$", PAGE, re.MULTILINE) + re.findall(r"`(openavs \w+ [^`]*--[^`]+)`", PAGE)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_has_its_options(line: str) -> None:
    _, name, *words = shlex.split(line)
    known = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    options = {text for parameter in known.params for text in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_links_point_to_existing_files() -> None:
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", PAGE):
        assert (ROOT / "docs" / path).exists(), path


def test_the_table_lists_all_studies() -> None:
    told = re.findall(r"^\| `([a-z-]+)` \| .+ \| .* \|$", PAGE[PAGE.index("| study |") :], re.MULTILINE)
    assert sorted(told) == sorted(file.stem for file in (ROOT / "eval" / "ablations").glob("*.yaml"))


def test_sizes_equal_those_of_the_cards() -> None:
    for name, clips in re.findall(r"^\| `(s4|ms3|avss|v3|avis)` \|.*?\| ([\d,]+) clips", PAGE, re.MULTILINE):
        assert load_benchmark(name).splits["test"].clips == int(clips.replace(",", ""))


def test_its_python_compiles_and_its_names_exist() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    imports = "\n".join(line for line in example.splitlines() if line.startswith(("from ", "import ")))
    compile(example, "benchmarks.md", "exec")
    exec(imports, {})
