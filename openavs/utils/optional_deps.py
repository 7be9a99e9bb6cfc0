"""Optional dependencies: the extras, their tested versions, imports with a helpful error, stubs of what they import."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Any

from openavs.errors import InputError
from openavs.utils.text import first_line


@dataclass(frozen=True)
class Extra:
    """One extra of pyproject.toml.

    Attributes:
        name: its name in pyproject.toml.
        brings: its purpose, in a few words.
        package: its main distribution.
        tried: versions with which the tests of this release passed; empty where none was run.
        note: a warning before the installation.
    """

    name: str
    brings: str
    package: str
    tried: tuple[str, ...] = ()
    note: str = ""

    @property
    def command(self) -> str:
        """The install command."""
        return f'pip install "openavs[{self.name}]"'

    def version(self) -> str | None:
        """Return the installed version of its package, or None."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None


_TORCHVISION = "it brings torchvision, whose build must be the one made for the installed torch"

EXTRAS: Mapping[str, Extra] = MappingProxyType(
    {
        extra.name: extra
        for extra in (
            Extra("segment-anything", "SAM's own package", "segment-anything", ("1.0",), "no torchvision is needed"),
            Extra(
                "groundingdino",
                "Grounding DINO's own package",
                "groundingdino-py",
                ("0.4.0",),
                f"{_TORCHVISION}; without torchvision: pip install --no-deps groundingdino-py==0.4.0",
            ),
            Extra(
                "laion-clap",
                "CLAP's own package",
                "laion-clap",
                ("1.1.7",),
                "it wants numpy<2; beside numpy 2: pip install librosa, then pip install --no-deps laion-clap==1.1.7 "
                "torchlibrosa==0.1.0",
            ),
            Extra(
                "timm",
                "image encoders of pe-av, omdet-turbo and edgetam",
                "timm",
                ("1.0.30",),
                _TORCHVISION,
            ),
            Extra("vllm", "the LLM engine for jobs", "vllm", note="it pins torch and transformers: give it a venv"),
            Extra("openai", "captioners and translators at a server", "openai"),
            Extra("supervision", "frames as supervision.Detections", "supervision", ("0.31.2",)),
            Extra("jobs", "Parquet manifests of label jobs", "pyarrow"),
            Extra("train", "training of students", "accelerate"),
            Extra("web", "the page of openavs serve", "gradio", ("6.31.0",)),
            Extra("s3", "label jobs on s3:// stores", "s3fs", ("2026.9.0",)),
            Extra("gcs", "label jobs on gs:// stores", "gcsfs"),
            Extra("ray", "label jobs on a cluster", "ray", ("2.60.0",)),
            Extra("edge", "the small ONNX models of examples/edge", "onnxruntime", ("1.31.1",)),
        )
    }
)


def import_optional(module: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Raises:
        InputError: it, or a module that it imports, is absent or incompatible; the message names the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        known = EXTRAS[extra]
        raise InputError(f"{known.package} cannot be used: {error.name} is not installed; {known.command}") from error
    except (ImportError, AttributeError, RuntimeError, OSError) as error:
        known = EXTRAS[extra]
        tried = f"; this release was tried with {known.package} {', '.join(known.tried)}" if known.tried else ""
        raise InputError(
            f"{known.package} cannot be imported ({first_line(error)}){tried}; 'openavs check' says more"
        ) from error


def import_timm() -> ModuleType:
    """Import timm, and torchvision before it: transformers needs both for a model with a part of timm's.

    Raises:
        InputError: see `import_optional`.
    """
    import_optional("torchvision", "timm")
    return import_optional("timm", "timm")


@contextmanager
def stub_modules(modules: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Make missing packages importable inside the block; installed ones are imported as usual.

    `segment-anything` and `groundingdino-py` import torchvision, and the latter timm, for training, drawing and files.
    Those are large, and torchvision must match the installed torch exactly.

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
