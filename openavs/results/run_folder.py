"""The result folder of a run: many clips, one recipe, resumable.

Beside the clips' own folders (`serialization.py`) it holds `run.json` (what ran) and `index.jsonl` (one line a clip).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import openavs
from openavs.errors import InputError
from openavs.results.serialization import (
    Values,
    clip_folder,
    encode,
    is_clip_folder,
    is_complete,
    is_done,
    json_bytes,
    read_result,
    refuse_links,
    refuse_other_folder,
    write_result,
)
from openavs.structures.types import ClipResult
from openavs.utils.fs import atomic_write
from openavs.utils.strict_json import parse_json

log = logging.getLogger(__name__)

FORMAT = 1
_RUN_KEYS = {"recipe", "masks", "models", "timings"}
_PACKAGES = (
    *("numpy", "pillow", "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "av", "soxr"),
    *("scipy", "pycocotools", "onnxruntime"),
)
_ABSENT = object()


class RunWriter:
    """Writes a result folder clip by clip; use it in a `with` block, whose end completes `run.json` and the index.

    Opening a folder that holds another recipe's results raises InputError that names the differing keys; with
    `overwrite` the earlier results are removed first. Opening one of the same recipe goes on with it: ask
    `is_done(clip)` before working on a clip. Clips that failed before are not done. One process at a time per folder.
    `data` says what the clips belong to where that is a data set (its name and split); it counts like the recipe.
    """

    def __init__(
        self,
        out: Path,
        recipe: Mapping[str, Any],
        *,
        values: Values = "instance",
        classes: Sequence[str] = (),
        data: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.out = out
        refuse_links(out / "clips", out / "index.jsonl", out / "run.json")
        self._values, self._classes = values, tuple(classes)
        self._masks = {"values": values, "classes": list(classes)}
        self._recipe = encode(dict(recipe), "recipe")
        self._data = encode(dict(data or {}), "data")
        saved = _read_run(out)
        if overwrite:
            remove_results(out)
            saved = None
        elif saved is None and any(_finished_clips(out)):
            raise InputError(f"{out} holds results of an unknown recipe (it has no run.json); give another --out")
        if saved is not None:
            new = {"recipe": self._recipe, "masks": self._masks, "data": self._data}
            _refuse_other_recipe(out, {"data": {}, **saved}, new)
        _make_folder(out / "clips")
        self._run = self._fresh_run() if saved is None else {**saved, **provenance(), "status": "running"}
        self._index = {line["id"]: line for line in _read_index(out)} if saved is not None else {}
        self._save_run()

    def is_done(self, clip: str, source: str | None = None, extras: Collection[str] = ()) -> bool:
        """Whether this clip's result is there, with its masks and `extras` (see `is_complete`).

        InputError if it was made from another `source` than the one given, or if other files are in its place.
        """
        refuse_other_folder(clip_folder(self.out, clip))
        if not is_done(self.out, clip):
            return False
        was = self._index.get(clip, {}).get("source")
        if source is not None and was is not None and was != source:
            raise InputError(f"{self.out} already holds '{clip}' made from {was}, not {source}; give another folder")
        return is_complete(self.out, clip, extras)

    def write(
        self, segmentation: ClipResult, *, seconds: float = 0.0, extras: Callable[[Path], object] | None = None
    ) -> Path:
        """Writes one clip's folder (see `write_result`) and its index line; `seconds` is what the clip took."""
        folder = write_result(self.out, segmentation, values=self._values, classes=self._classes, extras=extras)
        self._run["models"].update(encode(segmentation.models, "models"))
        for stage, spent in segmentation.timings.items():
            self._run["timings"][stage] = self._run["timings"].get(stage, 0.0) + float(spent)
        self._add_line(_line(segmentation, seconds))
        return folder

    def fail(self, clip: str, reason: str, *, seconds: float = 0.0, source: str | None = None) -> None:
        """Records that a clip failed and why; whatever was begun of its folder is removed."""
        folder = clip_folder(self.out, clip)
        for begun in (folder, folder.with_name(f".{folder.name}.part")):
            if is_clip_folder(begun):
                shutil.rmtree(begun, ignore_errors=True)
        line = {"id": clip, "status": "failed", "reason": reason, "frames": 0, "segments": 0}
        self._add_line({**line, "seconds": round(seconds, 3), "source": source})

    def finish(self) -> dict[str, Any]:
        """Completes `index.jsonl` (one line per clip, sorted) and `run.json`; returns what `run.json` says."""
        for clip in _finished_clips(self.out):  # a run killed between a result and its line left none
            if self._index.get(clip, {}).get("status") != "ok":
                self._index[clip] = _line(read_result(self.out, clip), 0.0)
        lines = [self._index[clip] for clip in sorted(self._index)]
        atomic_write(self.out / "index.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._run["status"] = "finished"
        self._save_run()
        return self._run

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self._run["status"] = "interrupted"
            self._save_run()

    def _fresh_run(self) -> dict[str, Any]:
        known = {"format": FORMAT, "status": "running", "started": _now(), "recipe": self._recipe, "masks": self._masks}
        return {**known, "data": self._data, **provenance(), "models": {}, "timings": {}}

    def _save_run(self) -> None:
        counts = Counter(line["status"] for line in self._index.values())
        self._run["counts"] = {"ok": counts["ok"], "failed": counts["failed"]}
        self._run["seconds"] = round(sum(line["seconds"] for line in self._index.values()), 3)
        self._run["updated"] = _now()
        atomic_write(self.out / "run.json", json_bytes(self._run))

    def _add_line(self, line: dict[str, Any]) -> None:
        self._index[line["id"]] = line
        with (self.out / "index.jsonl").open("a", encoding="ascii") as file:  # `finish` rewrites it whole
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _line(segmentation: ClipResult, seconds: float) -> dict[str, Any]:
    found = sum(len(frame.segments) for frame in segmentation.frames)
    known = {"id": segmentation.clip, "status": "ok", "reason": None, "frames": len(segmentation.frames)}
    return {**known, "segments": found, "seconds": round(seconds, 3), "source": segmentation.source}


# ------------------------------------------------------------------------------------------ what is already there


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the output folder {folder} ({error.strerror}); give another --out") from error


def _read_run(out: Path) -> dict[str, Any] | None:
    path = out / "run.json"
    if not path.is_file():
        return None
    try:
        run = parse_json(path.read_bytes())
    except ValueError:
        run = None
    if not isinstance(run, dict) or run.get("format") != FORMAT or not run.keys() >= _RUN_KEYS:
        raise InputError(f"{path} was not written by this openavs; give another --out")
    return run


def _read_index(out: Path) -> Iterator[dict[str, Any]]:
    path = out / "index.jsonl"
    if not path.is_file():
        return
    for number, text in enumerate(path.read_text("utf-8", "replace").splitlines(), start=1):
        try:
            line = parse_json(text)
        except ValueError:  # the line a killed run was writing; its clip is found again by its result
            log.warning("%s line %d is cut short and left out", path, number)
            continue
        if _is_line(line):
            yield line


def _is_line(line: Any) -> bool:
    """Whether this says what became of a clip, and how many seconds it took."""
    if not isinstance(line, dict) or not isinstance(line.get("seconds"), int | float):
        return False
    return 0 <= line["seconds"] < 1e12 and all(isinstance(line.get(key), str) for key in ("id", "status"))


def _finished_clips(out: Path) -> Iterator[str]:
    for path in sorted((out / "clips").glob("*/result.json")):
        if not path.parent.name.startswith("."):
            yield path.parent.name


def _refuse_other_recipe(out: Path, saved: dict[str, Any], new: dict[str, Any]) -> None:
    found = differing_keys({key: saved[key] for key in new}, new)
    if found:
        raise InputError(
            f"{out} holds results of another recipe, which differs in {describe_differences(found)}; "
            "choose another --out"
        )


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """The dotted keys in which two trees of plain data differ, as a recipe spells them, in order; beside each what it
    was in the one and is in the other, as JSON."""
    return dict(sorted(_differences(one, other)))


def describe_differences(differences: Mapping[str, str]) -> str:
    """Some of the differences for a sentence: `filtering.box_threshold (was 0.25, now 0.3), fps (was 1, now 2)`."""
    first = ", ".join(f"{key:.80}{how}" for key, how in list(differences.items())[:6])
    return first + (f" and {len(differences) - 6} more" if len(differences) > 6 else "")


def _differences(one: Any, other: Any, at: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in one.keys() | other.keys():
            here = key if at in ("", "recipe") else f"{at}.{key}"
            yield from _differences(one.get(key, _ABSENT), other.get(key, _ABSENT), here)
    elif one != other or type(one) is not type(other):
        yield at, f" (was {_short(one)}, now {_short(other)})"


def _short(value: Any) -> str:
    text = "not there" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:36]} ..."


def remove_results(out: Path) -> None:
    """Removes what this module wrote and nothing else."""
    clips = out / "clips"
    for folder in clips.iterdir() if clips.is_dir() else ():
        if is_clip_folder(folder):
            shutil.rmtree(folder)
    if clips.is_dir() and not any(clips.iterdir()):
        clips.rmdir()
    (out / "index.jsonl").unlink(missing_ok=True)
    (out / "run.json").unlink(missing_ok=True)  # last: until then what is left still has its recipe


# ---------------------------------------------------------------------------------------------- where it came from


def provenance() -> dict[str, Any]:
    """The versions that results came from: openavs, its commit, the packages it stands on, Python and the system."""
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


def git_commit(start: Path | None = None) -> str | None:
    """The commit of the checkout that the code (or `start`) lies in, read from git's own files; None outside of one."""
    folder = (start or Path(openavs.__file__).parent).resolve()
    for place in (folder, *folder.parents):
        try:
            return _head_of(place / ".git")
        except (OSError, ValueError):
            if (place / ".git").exists():
                return None
    return None


def _head_of(git: Path) -> str | None:
    if git.is_file():  # a work tree of its own: the file names the real folder
        git = (git.parent / git.read_text("utf-8").removeprefix("gitdir:").strip()).resolve()
    head = (git / "HEAD").read_text("utf-8").strip()
    if not head.startswith("ref:"):
        return head
    name = head.removeprefix("ref:").strip()
    shared = git / "commondir"
    common = (git / shared.read_text("utf-8").strip()).resolve() if shared.is_file() else git
    if (common / name).is_file():
        return (common / name).read_text("utf-8").strip()
    packed = common / "packed-refs"
    lines = packed.read_text("utf-8").splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), None)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
