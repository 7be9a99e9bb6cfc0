"""Imports go one way: types, media and stages, the pipeline, what stands on it, the command line and the page."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "openavs"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if "assets" not in path.parts
}
STAGES = ("captioners", "translators", "detectors", "segmenters", "verifiers")
ABOVE = ("benchmarks", "checks", "cli", "exports", "jobs", "students", "web")
"""What stands on the pipeline."""

SERVED = (
    *("api", "caching", "contracts", "footprint", "pipeline"),
    *("registry", "result", "results", "runs", "stagewise", "turns"),
)
"""What the stages serve and know nothing of."""

ALLOWED = {
    ("openavs.recipes", "openavs.students.folders"),  # `--pipeline student:DIR` is a recipe, too
    ("openavs.result", "openavs.exports.categories"),  # `result.export("coco")`
    ("openavs.result", "openavs.exports.formats"),
    ("openavs.result", "openavs.exports.items"),
    ("openavs.exports.items", "openavs.jobs.filters"),  # a job's exports are of what its filter left
}
"""Imports that look upwards, each inside of the function that is asked for it."""


FORBIDDEN = {
    "": set(ABOVE),
    "media": {*ABOVE, *STAGES, *SERVED},
    **{stage: {*ABOVE, *STAGES, *SERVED} - {stage} for stage in STAGES},
    "benchmarks": {"checks", "cli", "exports", "jobs", "web"},
    "checks": {"cli", "jobs", "students", "web"},
    "exports": {"checks", "cli", "jobs", "students", "web"},
    "jobs": {"checks", "cli", "exports", "web"},
    "students": {"checks", "cli", "exports", "jobs", "web"},
    "web": {"checks", "cli", "jobs"},
    "cli": set[str](),
}
"""What a folder may not import; the modules that are in none stand for the first line."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(path: Path, *, at_once: bool = False) -> Iterator[str]:
    """The modules of the package that one imports, types apart; `at_once`: those that come with it."""
    pending: list[ast.AST] = [tree(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if at_once and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "openavs":
            named = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else str(node.module) for name in named)
        pending += ast.iter_child_nodes(node)


def part(module: str) -> str:
    """The folder of the package that a module is in, or its own name."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_go_one_way(folder: str) -> None:
    looked_at = 0
    for name, path in MODULES.items():
        if name == "openavs" or name.endswith("__main__"):
            continue
        if (part(name) if part(name) in FORBIDDEN else "") == folder:
            wrong = {(name, other) for other in imports(path) if part(other) in FORBIDDEN[folder]} - ALLOWED
            assert not wrong
            looked_at += 1
    assert looked_at


def test_no_modules_import_one_another_in_a_circle() -> None:
    left = {name: set(imports(path, at_once=True)) - {name, "openavs"} for name, path in MODULES.items()}
    while ready := [name for name, others in left.items() if not others & left.keys()]:
        for name in ready:
            del left[name]
    assert not left


def test_private_names_stay_in_their_module() -> None:
    for name, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("openavs"):
                private = [alias.name for alias in node.names if alias.name.startswith("_") and alias.name[1] != "_"]
                assert not private, (name, private)
