"""Imports go one way: each package imports only what stands before it in one list, without circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "openavs"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if "assets" not in path.parts
}
ORDER = (
    "errors",
    "structures",
    "utils",
    "media",
    "models",
    "config",
    "visualization",
    "stages",
    "registry",
    "pipeline",
    "caching",
    "results",
    "jobs",
    "api",
    "evaluation",
    "synthetic",
    "corrections",
    "exports",
    "search",
    "training",
    "labeling",
    "checks",
    "web",
    "cli",
)
"""The packages and root modules, from the bottom to the top."""

LONGEST_CHAIN = 10
"""The most modules of which each needs the next one when it is imported, types apart."""

LAZY = {
    ("config.recipe", "caching.fingerprint"),  # `--pipeline student:DIR` is a recipe, too
    ("config.recipe", "training.io"),
    ("results.result", "jobs.save"),  # `result.save(...)`
    ("results.result", "corrections.apply"),  # `result.correct(...)`
    ("results.result", "corrections.mask_motion"),
    ("results.result", "exports.base"),  # `result.export("coco")`
    ("results.result", "exports.registry"),
}
"""Imports that look upward, each inside a function."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(path: Path, *, at_once: bool = False) -> Iterator[str]:
    """The modules of the package that one imports, types apart; `at_once`: those that are imported with it."""
    return (module for module, _ in imported(path, at_once=at_once))


def imported(path: Path, *, at_once: bool) -> Iterator[tuple[str, str]]:
    """The modules of `imports`, each with a name of it."""
    pending: list[ast.AST] = [tree(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if at_once and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "openavs":
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in MODULES else str(node.module), alias.asname or alias.name
        pending += ast.iter_child_nodes(node)


def needed(path: Path) -> set[str]:
    """The modules that one needs when it is imported: it uses a name of theirs in more than annotations."""
    used: set[str] = set()
    pending: list[tuple[ast.AST, str]] = [(tree(path), "")]
    while pending:
        node, field = pending.pop()
        if field in ("annotation", "returns"):
            continue
        if isinstance(node, ast.Name):
            used.add(node.id)
        for name, value in ast.iter_fields(node):
            children = value if isinstance(value, list) else [value]
            pending += [(child, name) for child in children if isinstance(child, ast.AST)]
    is_package = path.name == "__init__.py"
    return {module for module, name in imported(path, at_once=True) if is_package or name in used} - {"openavs"}


def part(module: str) -> str:
    """The package of openavs that a module is in, or its own name."""
    return module.split(".")[1] if "." in module else ""


def upward(*, at_once: bool) -> set[tuple[str, str]]:
    """The imports of modules that stand later in the list than their importer."""
    found = set()
    for name, path in MODULES.items():
        for other in imports(path, at_once=at_once):
            if part(name) in ORDER and part(other) in ORDER and ORDER.index(part(name)) < ORDER.index(part(other)):
                found.add((name.removeprefix("openavs."), other.removeprefix("openavs.")))
    return found


def test_every_package_has_its_place() -> None:
    assert {part(name) for name in MODULES} - {"", "__main__"} == set(ORDER)


def test_imports_go_one_way() -> None:
    assert upward(at_once=True) == set()
    assert upward(at_once=False) == LAZY


def test_a_stage_imports_no_other_stage() -> None:
    shared = {"segmenters": {"trackers"}, "trackers": {"segmenters"}}  # the trackers drive the segmenters' models
    for name, path in MODULES.items():
        own = name.split(".")[2] if name.startswith("openavs.stages.") and name.count(".") > 2 else None
        if own is None:
            continue
        for other in imports(path):
            slots = other.split(".")[2:3] if other.startswith("openavs.stages.") and other.count(".") > 2 else []
            assert not set(slots) - {own} - shared.get(own, set()), (name, other)


def test_the_root_holds_six_modules_at_most() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_no_modules_import_one_another_in_a_circle() -> None:
    left = {name: set(imports(path, at_once=True)) - {name, "openavs"} for name, path in MODULES.items()}
    while ready := [name for name, others in left.items() if not others & left.keys()]:
        for name in ready:
            del left[name]
    assert not left


def test_no_chain_of_imports_is_longer() -> None:
    @cache
    def chain(module: str) -> tuple[str, ...]:
        """The longest chain that begins with a module."""
        return (module, *max(map(chain, needed(MODULES[module]) - {module}), key=len, default=()))

    longest = max(map(chain, MODULES), key=len)
    assert len(longest) == LONGEST_CHAIN, longest


def test_private_names_stay_in_their_module() -> None:
    for name, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("openavs"):
                private = [alias.name for alias in node.names if alias.name.startswith("_") and alias.name[1] != "_"]
                assert not private, (name, private)
