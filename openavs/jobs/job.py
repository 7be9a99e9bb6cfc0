"""A job and its shards as plain data that is sent to workers in any process or machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from openavs.results.serialization import Values

PIPELINE_BUILDER = "openavs.caching.build:build_pipeline"
STUDENT_BUILDER = "openavs.training.inference:build_student"


@dataclass(frozen=True)
class Job:
    """A job over the clips of a manifest.

    Attributes:
        out: The result folder, as this machine names it.
        key: The manifest's key, the same on every machine.
        root: The folder that the manifest's relative paths start from, as this machine names it.
        recipe: The resolved recipe.
        base: The folder of the recipe's own relative paths.
        sink: The class that writes further files of a clip, as `module:Class` (see `sink.py`).
        options: Plain-data options of the sink.
        builder: The function that builds the recipe's pipeline, as `module:function` (see `caching/build.py`).
        classes: Labels of class masks in the order of their indices; empty: instance masks.
        threads: CPU threads of a worker. Floats on a CPU depend on them.
        lock: A file of pinned model commits.
        cache: The folder of the stage cache; None: no cache.
        schedule: `per-clip`, `per-stage` or `auto` (by available memory). Results are the same.
        window: Clips of a window of the schedule `per-stage`.
        share: Part of its device's memory that a worker may use.
    """

    out: Path
    key: str
    root: Path
    recipe: Mapping[str, Any]
    base: Path | None = None
    sink: str = "openavs.jobs.sink:Sink"
    options: Mapping[str, Any] = field(default_factory=dict)
    builder: str = PIPELINE_BUILDER
    classes: tuple[str, ...] = ()
    threads: int = 1
    lock: Path | None = None
    cache: Path | None = None
    schedule: str = "per-clip"
    window: int = 256
    share: float = 1.0

    @property
    def values(self) -> Values:
        """The meaning of the pixel values of the masks."""
        return "class" if self.classes else "instance"


@dataclass(frozen=True)
class ShardSpec:
    """One shard of a job: its number, and the offset and size in bytes of its lines in `manifest.jsonl`.

    `only` restricts the shard to some clips. They are recorded in the journal, and the shard is not completed; only
    `executors/base.py` makes such a spec.
    """

    job: Job
    number: int
    offset: int
    size: int
    only: tuple[str, ...] | None = None

    def part(self, *clips: str) -> ShardSpec:
        """Return the shard restricted to these clips."""
        return replace(self, only=clips)

    def whole(self) -> ShardSpec:
        """Return the shard with all of its clips."""
        return replace(self, only=None)


@dataclass(frozen=True)
class ClipFinished:
    """The event of one finished clip, for progress alone.

    `reason` is a short word to count failures by and `detail` the sentence (None if the clip is done). `seconds` are
    wall time, `timings` seconds by stage, `cached` hits and misses of the stage cache since the clip before, such as
    `{"captioner hits": 1}`.
    """

    shard: int
    clip: str
    status: str
    reason: str | None
    seconds: float
    timings: Mapping[str, float] = field(default_factory=dict)
    cached: Mapping[str, int] = field(default_factory=dict)
    detail: str | None = None


def import_name(name: str) -> Callable[..., Any]:
    """Import the class or function `module:name`."""
    module, _, attribute = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    return found
