"""`openavs check`: is this machine ready? In sentences, each problem with its fix."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import typer

from openavs.cli.common import Json, print_json

_MARKS = {"ok": "ok      ", "note": "note    ", "problem": "problem "}
Finding = dict[str, Any]


def check(as_json: Json = False) -> None:
    """Say whether this machine is ready, and what to do where it is not. Exit code 1 if something is wrong."""
    findings = [_python(), *_torch(), _memory(), *_codecs(), _disk(), *_torchvision(), *_extras()]
    recipes = _recipes()
    ready = not any(finding["state"] == "problem" for finding in [*findings, *recipes])
    if as_json:
        print_json({"ready": ready, "machine": findings, "recipes": recipes})
    else:
        for finding in [*findings, *recipes]:
            print(f"{_MARKS[finding['state']]}{finding['says']}")
        print("\nThis machine is ready." if ready else "\nNot ready: mend the problems above.")
    if not ready:
        raise typer.Exit(1)


def _finding(topic: str, says: str, state: str = "ok", **facts: Any) -> Finding:
    return {"topic": topic, "state": state, "says": says, **facts}


def _python() -> Finding:
    from openavs import __version__

    version = platform.python_version()
    return _finding("python", f"openavs {__version__} runs on Python {version}.", version=version, path=sys.executable)


def _torch() -> list[Finding]:
    try:
        import torch
        import transformers
    except ImportError as problem:
        return [_finding("torch", f"{problem}; run: pip install torch transformers", "problem")]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    found = [_finding("torch", f"torch {torch.__version__}, transformers {transformers.__version__}.", **versions)]
    from openavs.device import resolve_device

    place = resolve_device("auto", "auto")
    threads = torch.get_num_threads()
    cores = f" ({threads} threads)" if place.device.type == "cpu" else ""
    found.append(_finding("device", f"{place.reason}{cores}", device=str(place.device), dtype=str(place.dtype)))
    return found


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):  # not a system that says
        return _finding("memory", "This system does not say how much memory it has.", "note")
    if total < 2:
        return _finding("memory", f"{total:.1f} GiB of memory; the tiny recipe needs 2 GiB.", "problem", gib=total)
    if total < 8:
        fix = "the recipes for real videos want 8 GiB or more"
        return _finding("memory", f"{total:.1f} GiB of memory; {fix}.", "note", gib=round(total, 1))
    return _finding("memory", f"{total:.1f} GiB of memory.", gib=round(total, 1))


def _codecs() -> list[Finding]:
    try:
        import av
        from av.codec import Codec
    except ImportError as problem:
        return [_finding("codecs", f"{problem}; run: pip install av", "problem")]
    lacking = []
    wanted: tuple[tuple[str, Literal["r", "w"]], ...] = (("h264", "r"), ("aac", "r"), ("libx264", "w"), ("aac", "w"))
    for name, mode in wanted:
        try:
            Codec(name, mode)
        except ValueError:  # av's UnknownCodecError is one
            lacking.append(f"{name} ({'decode' if mode == 'r' else 'encode'})")
    if lacking:
        fix = "install the wheel from PyPI: pip install --force-reinstall --only-binary :all: av"
        return [_finding("codecs", f"PyAV {av.__version__} lacks {', '.join(lacking)}; {fix}", "problem")]
    return [_finding("codecs", f"PyAV {av.__version__} reads and writes H.264 and AAC.", version=av.__version__)]


def _disk() -> Finding:
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE).expanduser()
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free / 2**30
    facts: Finding = {"gib_free": round(free, 1), "cache": str(cache)}
    if free < 15:
        fix = "the largest recipe downloads about 12 GB; free some or set HF_HOME to a larger disk"
        return _finding("disk", f"{free:.1f} GiB are free for models in {cache}; {fix}.", "note", **facts)
    return _finding("disk", f"{free:.0f} GiB are free for models in {cache}.", **facts)


def _torchvision() -> list[Finding]:
    """Whether a torchvision that nobody needs breaks transformers: a build for another torch does, at import."""
    from importlib import import_module
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("torchvision")
    except PackageNotFoundError:
        return []
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as problem:
        why = f"torchvision {installed} does not fit the installed torch ({str(problem).splitlines()[0]})"
        fix = "transformers fails with it; run: pip uninstall torchvision (openavs does without), or install its match"
        return [_finding("torchvision", f"{why}; {fix}", "problem", version=installed)]
    return [_finding("torchvision", f"torchvision {installed} fits the installed torch.", version=installed)]


def _extras() -> list[Finding]:
    from openavs.extras import EXTRAS

    return [_extra(extra) for extra in EXTRAS.values()]


def _extra(extra: Any) -> Finding:
    """Whether an optional package is installed, and in a version that was tried. Absent ones are no problem."""
    installed = extra.version()
    facts = {"extra": extra.name, "package": extra.package, "installed": installed, "tried": [*extra.tried]}
    note = f"; {extra.note}" if extra.note else ""
    if installed is None:
        says = f"Extra {extra.name} ({extra.brings}) is not installed; if you want it: {extra.command}{note}."
        return _finding("extra", says, **facts)
    if extra.tried and installed not in extra.tried:
        known = ", ".join(extra.tried)
        fix = f"if it fails: pip install {extra.package}=={extra.tried[-1]}"
        says = f"Extra {extra.name}: {extra.package} {installed} is installed, but {known} was tried; {fix}"
        return _finding("extra", says, "note", **facts)
    return _finding("extra", f"Extra {extra.name}: {extra.package} {installed} is installed.", **facts)


def _recipes() -> list[Finding]:
    from openavs import resources
    from openavs.recipes import load_recipe

    return [_recipe(load_recipe(name)) for name in resources.names("pipelines")]


def _recipe(recipe: Any) -> Finding:
    """Whether the recipe's models are here. Absent embedded models are a problem, absent downloads only a note."""
    from openavs.hub import resolve
    from openavs.types import ModelError

    states, fetch = {}, []
    for model in dict.fromkeys(recipe.models().values()):
        try:
            resolve(model, offline=True)
            states[model] = "embedded" if model.startswith("openavs:") else "here"
        except ModelError as problem:
            states[model] = "missing"
            fetch.append(_fix(model, problem))
    facts = {"recipe": recipe.name, "models": states}
    if not fetch:
        how = "embedded" if set(states.values()) <= {"embedded"} else "on this disk"
        return _finding("recipe", f"Recipe {recipe.name}: its {len(states)} models are {how}.", **facts)
    absent = [model for model, state in states.items() if state == "missing"]
    says = f"Recipe {recipe.name}: {len(absent)} of {len(states)} models are not here"
    if any(not model.startswith("hf:") for model in absent):
        return _finding("recipe", f"{says}: {'; '.join(fetch)}.", "problem", **facts)
    return _finding("recipe", f"{says}; the first use downloads them, or run: {' && '.join(fetch)}", "note", **facts)


def _fix(model: str, problem: Exception) -> str:
    if not model.startswith("hf:"):
        return str(problem)
    name, _, revision = model.removeprefix("hf:").partition("@")
    return f"hf download {name}" + (f" --revision {revision}" if revision not in ("", "main") else "")
