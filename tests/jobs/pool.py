"""Small collections of videos, recipes that misbehave on purpose, and trees of results to compare."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from openavs.config.recipe import load_recipe
from openavs.jobs.job import Job, ShardSpec
from openavs.jobs.manifest import JobRequest, Manifest
from openavs.jobs.output_dir import open_folder
from openavs.labeling.open import open_source
from tests.conftest import Outcome
from tests.media_files import gray, make_media, tone
from tests.plugin_recipe import STAGES, write_recipe

ROOT = Path(__file__).resolve().parents[2]

LABELS = "openavs.evaluation.job_io:LabelSink"

MORE_STAGES = '''

import os
import time


class Fatal(Eye):
    """Ends its process at once when it sees a picture that is nearly white."""

    def detect(self, images, phrases):
        if any(image.mean() > 230 for image in images):
            os._exit(9)
        return super().detect(images, phrases)


class Faulty(Eye):
    """Has a bug that shows on pictures that are nearly white."""

    def detect(self, images, phrases):
        if any(image.mean() > 230 for image in images):
            raise ZeroDivisionError("float division by zero")
        return super().detect(images, phrases)


class Slow(Eye):
    """Takes its time."""

    def detect(self, images, phrases):
        time.sleep(0.15)
        return super().detect(images, phrases)
'''


def videos(folder: Path, count: int, *, seconds: int = 2, white: tuple[int, ...] = ()) -> Path:
    """Writes `v00.mp4`, `v01.mp4`, ...: gray pictures with a tone; those in `white` are white."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pictures = [gray(29 if number in white else number % 20)] * (4 * seconds)
        make_media(folder / f"v{number:02}.mp4", pictures, fps=4, sound=tone(seconds))
    return folder


def recipe(folder: Path, **changes: Any) -> Path:
    """The plug-in recipe with the misbehaving stages as a file: `detector={"use": "./stages.py:Fatal"}`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_recipe(folder, **changes)
    (folder / "stages.py").write_text(STAGES + MORE_STAGES)
    return path


def planned(
    source: Path | str, recipe_file: Path, out: Path, *, shard_size: int = 4, overrides: tuple[str, ...] = ()
) -> tuple[Job, Manifest, list[ShardSpec]]:
    """A job ready to run, as `openavs label` makes it."""
    made = load_recipe(recipe_file, overrides)
    found = open_source(str(source))
    classes = tuple(made.vocabulary or ())
    plan = open_folder(out, JobRequest(found.kind, found.samples, made.to_dict(), classes, shard_size=shard_size))
    job = Job(out, plan.key, found.root, made.to_dict(), base=made.base, sink=LABELS, classes=classes, source=found.url)
    return job, plan, list(plan.specs(job, range(plan.shards)))


def tree(out: Path) -> dict[str, str]:
    """The files that every run writes equally.

    All but `run.json`, the logs, the lock, the index's `seconds`, and `index.html` with its pictures of the overlays.
    """
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if name == "index.jsonl":
            rows = [json.loads(line) for line in path.open()]
            found[name] = json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
        elif name not in ("run.json", ".lock", "log", "index.parquet", "index.html") and not name.startswith("log/"):
            found[name] = "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def disk_events(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the files that are flushed to disk, by path below `root`, and renames, as `-> name` (Linux).

    Random temporary names are recorded as `.tmp`.
    """
    events: list[str] = []
    sync, rename = os.fsync, os.replace

    def told_sync(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}")).relative_to(root)
        events.append((path.with_name(".tmp") if path.suffix == ".tmp" else path).as_posix())
        sync(handle)

    def told_rename(path: Path, to: Path) -> None:
        events.append(f"-> {to.name}")
        rename(path, to)

    monkeypatch.setattr(os, "fsync", told_sync)
    monkeypatch.setattr(os, "replace", told_rename)
    return events


def label(*args: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Starts `openavs label` in a process of its own."""
    command = [sys.executable, "-m", "openavs", "label", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def finished(process: subprocess.Popen[str]) -> Outcome:
    """Waits for a process of `label`."""
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)
