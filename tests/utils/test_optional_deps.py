"""Missing packages can be imported inside the block; installed ones and later imports are not affected."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.utils.optional_deps import EXTRAS, import_optional, stub_modules

OLD = """
import no_such_vision
import no_such_vision.ops as ops
from no_such_vision.ops.boxes import nms, box_area
from no_such_layers.layers import pair
assert no_such_vision.__version__ == "0.20"

def size(x):
    return pair(x)

class Net(ops.Base):
    pass
"""


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that imports two absent ones."""
    (tmp_path / "an_old_package.py").write_text(OLD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "an_old_package", raising=False)
    return "an_old_package"


def test_a_package_imports_and_what_it_uses_works(old: str) -> None:
    absent = {
        "no_such_vision": {"__version__": "0.20"},
        "no_such_layers.layers": {"pair": lambda x: (x, x)},
    }
    before = set(sys.modules)
    with stub_modules(absent):
        package = importlib.import_module(old)
    assert package.size(3) == (3, 3)
    with pytest.raises(ImportError, match=r"no_such_vision\.ops\.boxes\.nms is needed .* pip install no_such_vision"):
        package.nms([1], [2], 0.5)
    assert not hasattr(package.ops, "__version__"), "what Python itself looks for is absent and no stand-in"
    assert set(sys.modules) - before == {old}
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_vision")


def test_what_is_installed_is_not_touched() -> None:
    with stub_modules({"numpy": {"array": None}, "numpy.no_such_part": {"x": 1}, "json": {}}):
        import json

        import numpy

        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("numpy.no_such_part")
    assert numpy.array([1]).sum() == 1 and json.loads("1") == 1


def test_stubs_are_removed_even_if_the_import_fails(old: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_layers"), stub_modules({"no_such_vision": {}}):
        importlib.import_module(old)
    assert not any(name.startswith("no_such") for name in sys.modules)


def test_an_absent_extra_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segment_anything", None)  # Python's own mark of a module that cannot be had
    with pytest.raises(InputError, match=r'segment-anything cannot be used: .*; pip install "openavs\[segment-any'):
        import_optional("segment_anything", "segment-anything")


def test_a_package_that_breaks_on_import_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_on_import.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"nms does not exist\); this release was tried with groundingdino-py 0.4.0;"):
        import_optional("breaks_on_import", "groundingdino")


def test_extras_are_those_of_the_project() -> None:
    import tomllib

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    declared = set(project["optional-dependencies"])
    assert set(EXTRAS) == declared - {"dev", "docs"}  # which are for those who work on openavs itself
    assert EXTRAS["edge"].version() is not None
