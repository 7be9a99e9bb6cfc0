"""Stand-ins for absent modules that an old package imports but that its model never runs.

`segment-anything` and `groundingdino-py` import torchvision, and the latter timm, OpenCV and matplotlib, for training,
drawing and files. Those are large, must match the installed torch exactly, and are not what is asked of them here.
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
    """While the block runs, absent packages can be imported; installed ones are found as ever.

    Afterwards `import torchvision` fails again as it should; only who imported it within the block keeps the names.

    Args:
        modules: module -> the names that are really used, with their values. Its packages get any other name, too:
            a class that says what is absent when somebody makes or calls one.
    """
    finder = _Finder(modules)
    sys.meta_path.append(finder)  # at the end: what is installed has been found before
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
            return None  # not ours, or a part that an installed package lacks: that is its own error
        return ModuleSpec(name, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        self.made.append(module.__name__)
        vars(module).update(self.modules.get(module.__name__, {}))
        vars(module)["__getattr__"] = lambda name: _absent(module.__name__, name)


def _absent(module: str, name: str) -> type:
    if name.startswith("__"):  # what Python itself looks for
        raise AttributeError(name)

    def refuse(cls: type, *_: Any, **__: Any) -> Any:
        raise ImportError(f"{module}.{name} is needed for this: pip install {module.partition('.')[0]}")

    return type(name, (), {"__new__": refuse})
