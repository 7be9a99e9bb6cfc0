"""Plug-ins in files: the class or function of `./file.py:Name`, named by a recipe or a benchmark."""

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
    """Return whether `use` is `./file.py:Class` and not a backend's short name."""
    path, _, name = use.rpartition(":")
    return path.endswith(".py") or (not path and name.endswith(".py"))


def load_file_class(use: str, base: Path | None = None) -> type:
    """Load the class of `./file.py:Class`; a relative path starts from `base` or else the working directory.

    The file is executed: use only files that you trust.

    Raises:
        InputError: no such file or class, or the file fails when it is executed.
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
    """Load the function of `./file.py:function`, like `load_file_class`.

    Raises:
        InputError: no such file or function, or the file fails when it is executed.
    """
    path_text, _, name = use.rpartition(":")
    module = _load(find_file(use, base))
    found = getattr(module, name, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"there is no function {name!r} in {path_text}; {did_you_mean(name, own)}")
    return cast(Callable[..., Any], found)


def find_file(use: str, base: Path | None = None) -> Path:
    """Return the path of the file in `./file.py:Class` without executing it.

    Raises:
        InputError: the file does not exist.
    """
    path_text = use.rpartition(":")[0]
    path = Path(path_text).expanduser()
    looked = [path] if path.is_absolute() else [folder / path for folder in (base, Path.cwd()) if folder is not None]
    for candidate in looked:
        if candidate.is_file():
            return candidate.resolve()
    raise InputError(f"the plug-in file {path_text} does not exist (looked for {' and '.join(map(str, looked))})")


def _load(path: Path) -> ModuleType:
    """Execute the file as a module of a unique name; an edited file is another module."""
    stat = path.stat()
    digest = hashlib.sha256(f"{path}|{stat.st_mtime_ns}|{stat.st_size}".encode()).hexdigest()[:12]
    name = f"openavs_plugin_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:  # the target of a link named .py is another kind of file
        raise InputError(f"{path} is not a Python file that can be loaded")
    module = module_from_spec(spec)
    sys.modules[name] = module  # before execution: dataclasses and pickle look the module up
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        del sys.modules[name]
        raise InputError(f"the plug-in {path} needs the package {error.name!r}: pip install it") from error
    except Exception as error:  # user code may raise anything
        del sys.modules[name]
        raise InputError(f"the plug-in {path} fails when it is loaded: {type(error).__name__}: {error}") from error
    return module
