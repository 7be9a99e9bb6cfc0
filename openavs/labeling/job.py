"""What a worker gets to know: the job as plain data that travels to any process or machine, and one shard of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openavs.results.serialization import Values


@dataclass(frozen=True)
class Job:
    """A planned job. What `key` stands for is the same on every machine; the paths may differ.

    `out` is the result folder and `root` the folder that the plan's paths start from, as this machine sees them; `base`
    is the folder of the recipe's own relative paths. `classes` are the labels of class masks in the order of their
    indices (empty: binary labels, instance masks). `threads` are those of one worker: results on a CPU depend on them.
    `lock` is a file of pinned model commits, `cache` the folder of the stage cache.

    `schedule` is how a worker goes through its clips: `per-clip`, `per-stage` over a `window` of them, or
    `auto`: as its `share` of its device's memory allows. Results are the same.
    """

    out: Path
    key: str
    root: Path
    recipe: Mapping[str, Any]
    base: Path | None = None
    classes: tuple[str, ...] = ()
    threads: int = 1
    lock: Path | None = None
    cache: Path | None = None
    schedule: str = "per-clip"
    window: int = 256
    share: float = 1.0

    @property
    def values(self) -> Values:
        """What the pixels of the masks of a clip say."""
        return "class" if self.classes else "instance"


@dataclass(frozen=True)
class ShardSpec:
    """One shard of a job: its number, and where its lines lie in `plan.jsonl`.

    `only` are the clips to work on where it is not the whole shard: they are recorded in the shard's journal, and
    nothing is committed. An engine never makes one of these itself: see `recovery.py`.
    """

    job: Job
    number: int
    offset: int
    size: int
    only: tuple[str, ...] | None = None

    def part(self, *clips: str) -> ShardSpec:
        """These clips of the shard alone."""
        return replace(self, only=clips)

    def whole(self) -> ShardSpec:
        """The shard without what was picked of it."""
        return replace(self, only=None)
