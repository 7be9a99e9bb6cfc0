"""Names of modules and classes are unique, and loggers, exceptions and PIL have one spelling."""

from __future__ import annotations

import ast
import re
from collections import Counter

from tests.test_layers import MODULES, tree

SHARED = {
    *("base", "config", "options", "registry"),  # one part per package, for its own backends or settings
    *("app", "checkpoint", "datasets", "inference", "jobs", "models", "report", "tables"),
    *("audio", "clip", "serialization", "video"),  # media; a synthetic, exported or saved kind of it; CLIP
    *("grounding_dino", "sam"),  # adapter and fast operations
    "store",  # of stage outputs; of corrections
    *("metrics", "pipeline"),  # the package and its main module
}
"""Names of modules that several packages have."""


def test_module_names_are_unique_but_for_those_of_a_table() -> None:
    count = Counter(name.rpartition(".")[2] for name in MODULES)
    assert {name for name, times in count.items() if times > 1} == SHARED


def test_public_class_names_are_unique() -> None:
    names = (node.name for path in MODULES.values() for node in tree(path).body if isinstance(node, ast.ClassDef))
    count = Counter(name for name in names if not name.startswith("_"))
    assert [name for name, times in count.items() if times > 1] == []


def test_exceptions_are_bound_as_error() -> None:
    bound = [
        (module, node.name)
        for module, path in MODULES.items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and node.name not in (None, "error")
    ]
    assert bound == []


def test_loggers_are_called_logger() -> None:
    for module, path in MODULES.items():
        for line in path.read_text("utf-8").splitlines():
            assert not (found := re.match(r"(\w+) = logging\.getLogger\(", line)) or found[1] == "logger", module


def test_pil_is_imported_as_image() -> None:
    for module, path in MODULES.items():
        assert not re.search(r"from PIL import .*\bas\b|^import PIL", path.read_text("utf-8"), re.MULTILINE), module
