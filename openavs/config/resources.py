"""Lookup of the packaged files in prompts/, pipelines/ and eval/, in a checkout or an installed wheel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from openavs.errors import InputError
from openavs.utils.text import did_you_mean

Kind = Literal["prompts", "pipelines", "eval"]

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "prompts": (".txt",),
    "pipelines": (".yaml", ".yml"),
    "eval": (".yaml", ".yml", ".json"),
}
_SINGULAR = {"prompts": "prompt", "pipelines": "recipe", "eval": "benchmark"}
_PACKAGE = Path(__file__).resolve().parents[1]


def find(kind: Kind, name: str | Path) -> Path:
    """Return the file of a name: a path, or the name of a packaged file.

    A name with a folder in it is always a path. A name with a known suffix is tried as a path first. A bare name
    (`tiny`) never depends on the working directory.

    Raises:
        InputError: no such file; the message suggests the nearest one.
    """
    text = str(name)
    given = Path(text).expanduser()
    has_folder = "/" in text or os.sep in text
    if (has_folder or given.suffix in _SUFFIXES[kind]) and given.is_file():
        return given.resolve()
    if has_folder:
        raise InputError(f"the {_SINGULAR[kind]} file {text!r} does not exist")
    stem = given.stem if given.suffix in _SUFFIXES[kind] else text
    for folder in folders(kind):
        for suffix in _SUFFIXES[kind]:
            if (shipped := folder / f"{stem}{suffix}").is_file():
                return shipped
    raise InputError(f"there is no {_SINGULAR[kind]} {text!r}; {did_you_mean(stem, names(kind))}")


def names(kind: Kind) -> list[str]:
    """Return the names of the packaged files, sorted."""
    found = {file.stem for folder in folders(kind) for file in folder.iterdir() if file.suffix in _SUFFIXES[kind]}
    return sorted(found)


def shipped(kind: Kind, filename: str) -> Path:
    """Return a packaged file by its full name (`published.csv`).

    Raises:
        InputError: the installation lacks the file.
    """
    for folder in folders(kind):
        if (file := folder / filename).is_file():
            return file
    raise InputError(f"{kind}/{filename} is missing from this installation of openavs; install it again")


def folders(kind: Kind) -> list[Path]:
    """Return the folders with files of this kind, in order of precedence: the checkout's, then the wheel's."""
    if kind not in get_args(Kind):
        raise InputError(f"there is no kind of resource {kind!r}; {did_you_mean(kind, get_args(Kind))}")
    candidates = [_PACKAGE / "_data" / kind]
    if (checkout := _checkout()) is not None:
        candidates.insert(0, checkout / kind)
    return [folder for folder in candidates if folder.is_dir()]


def _checkout() -> Path | None:
    """Return the repository root if the package runs from a checkout, else None."""
    root = _PACKAGE.parent
    project = root / "pyproject.toml"
    if project.is_file() and 'name = "openavs"' in project.read_text(encoding="utf-8"):
        return root
    return None
