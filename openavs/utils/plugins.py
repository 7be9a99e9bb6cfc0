"""Loads a class or a function from a Python file that a recipe or a card names: `./file.py:Class`."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from openavs.errors import InputError
from openavs.utils.text import did_you_mean


def is_file_reference(use: str) -> bool:
    """Whether `use` names a class in a file rather than a backend's short name."""
    path, _, name = use.rpartition(":")
    return path.endswith(".py") or (not path and name.endswith(".py"))


def load_file_class(use: str, base: Path | None = None) -> type:
    """The class of `./file.py:Class`; a relative path is looked for in `base`, then in the working directory.

    The file is run as it stands: name only files that you trust.

    Raises:
        InputError: no such file or class, or the file fails when it is run.
    """
    path_text, _, name = use.rpartition(":")
    if not path_text:
        raise InputError(f"{use!r} names no class: write {use}:ClassName")
    module = _load(find_file(use, base))
    found = getattr(module, name, None)
    if not isinstance(found, type):
        own = [key for key, value in vars(module).items() if isinstance(value, type) and not key.startswith("_")]
        raise InputError(f"there is no class {name!r} in {path_text}; {did_you_mean(name, own)}")
    return found


def load_file_function(use: str, base: Path | None = None) -> Callable[..., Any]:
    """The function of `./file.py:function`, found and run as `load_file_class` does; `InputError` if it is none."""
    path_text, _, name = use.rpartition(":")
    module = _load(find_file(use, base))
    found = getattr(module, name, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"there is no function {name!r} in {path_text}; {did_you_mean(name, own)}")
    return cast(Callable[..., Any], found)


def find_file(use: str, base: Path | None = None) -> Path:
    """The file that `./file.py:Class` names, looked for as `load_file_class` does and not run; `InputError` if none."""
    path_text = use.rpartition(":")[0]
    path = Path(path_text).expanduser()
    looked = [path] if path.is_absolute() else [folder / path for folder in (base, Path.cwd()) if folder is not None]
    for candidate in looked:
        if candidate.is_file():
            return candidate.resolve()
    raise InputError(f"the plug-in file {path_text} does not exist (looked for {' and '.join(map(str, looked))})")


def _load(path: Path) -> ModuleType:
    """Runs the file once under a name of its own; an edited file is another module."""
    stat = path.stat()
    digest = hashlib.sha256(f"{path}|{stat.st_mtime_ns}|{stat.st_size}".encode()).hexdigest()[:12]
    name = f"openavs_plugin_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:  # a link named .py leads to a file that is not
        raise InputError(f"{path} is not a Python file that can be loaded")
    module = module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as problem:
        del sys.modules[name]
        raise InputError(f"the plug-in {path} needs the package {problem.name!r}: pip install it") from problem
    except Exception as problem:  # anything may fail in somebody's file; the sentence says what
        del sys.modules[name]
        raise InputError(
            f"the plug-in {path} fails when it is loaded: {type(problem).__name__}: {problem}"
        ) from problem
    return module
