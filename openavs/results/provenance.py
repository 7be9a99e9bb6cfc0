"""The origin of results (versions of code and packages), and the differences between two recipes."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import openavs

_PACKAGES = (
    *("numpy", "pillow", "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "av", "soxr"),
    *("scipy", "pycocotools", "onnxruntime"),
)
_ABSENT = object()


def provenance() -> dict[str, Any]:
    """Return the versions of openavs, its commit, the packages it depends on, Python and the operating system."""
    system = {"python": platform.python_version(), "platform": platform.platform()}
    return {"openavs": openavs.__version__, "git": git_commit(), "packages": _versions(), **system}


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed
    return found


@cache
def git_commit(start: Path | None = None) -> str | None:
    """Return the commit of the checkout that holds the code (or `start`); None outside of one."""
    folder = (start or Path(openavs.__file__).parent).resolve()
    if not any((place / ".git").exists() for place in (folder, *folder.parents)):
        return None  # the usual case of an installed package: no process is started
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """Return the dotted keys in which two trees of plain data differ, sorted, each with both values as JSON."""
    return dict(sorted(_differences(one, other)))


def describe_differences(differences: Mapping[str, str]) -> str:
    """Describe some differences: `filtering.box_threshold (was 0.25, now 0.3), fps (was 1, now 2)`."""
    first = ", ".join(f"{key:.80}{change}" for key, change in list(differences.items())[:6])
    return first + (f" and {len(differences) - 6} more" if len(differences) > 6 else "")


def _differences(one: Any, other: Any, at: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in one.keys() | other.keys():
            here = key if at in ("", "recipe") else f"{at}.{key}"
            yield from _differences(one.get(key, _ABSENT), other.get(key, _ABSENT), here)
    elif one != other or type(one) is not type(other):
        yield at, f" (was {_short(one)}, now {_short(other)})"


def _short(value: Any) -> str:
    text = "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:36]} ..."
