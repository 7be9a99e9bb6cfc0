"""Stubs for missing modules that an old package imports but its model never uses.

`segment-anything` and `groundingdino-py` import torchvision, and the latter timm, OpenCV and matplotlib, for training,
drawing and files. Those are large, and torchvision must match the installed torch exactly.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


@contextmanager
def stub_modules(modules: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Make missing packages importable inside the block; installed ones are imported as usual.

    Afterwards `import torchvision` fails again; only modules that imported it inside the block keep its names.

    Args:
        modules: module name -> the names that are used, with their values. Any other name of their packages is a
            class that raises ImportError when it is instantiated.
    """
    finder = _Finder(modules)
    sys.meta_path.append(finder)  # last, so that installed packages have precedence
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in finder.made:
            del sys.modules[name]


class _Finder(MetaPathFinder, Loader):
    def __init__(self, modules: Mapping[str, Mapping[str, Any]]) -> None:
        self.modules = modules
        self.packages = {name.partition(".")[0] for name in modules}
        self.made: list[str] = []

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package = name.partition(".")[0]
        if package not in self.packages or (package != name and package not in self.made):
            return None  # not a stub, or a missing part of an installed package
        return ModuleSpec(name, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        self.made.append(module.__name__)
        vars(module).update(self.modules.get(module.__name__, {}))
        vars(module)["__getattr__"] = lambda name: _missing_class(module.__name__, name)


def _missing_class(module: str, name: str) -> type:
    if name.startswith("__"):  # of the import system
        raise AttributeError(name)

    def refuse(cls: type, *_: Any, **__: Any) -> Any:
        raise ImportError(f"{module}.{name} is needed for this: pip install {module.partition('.')[0]}")

    return type(name, (), {"__new__": refuse})
