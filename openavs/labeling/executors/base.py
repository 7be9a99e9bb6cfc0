"""What an engine is: it gets shards and has them worked off, one `run_shard` at a time in each of its workers.

Rules for every engine:
- A worker loads its models once (`worker.Worker(job)`) and runs shards with them (`Worker.run`, which is `run_shard`).
- `run_shard` returning a mark means that the shard is committed; returning None that it was stopped, or was a part.
- When a worker dies (or hangs), `Recovery.after(spec, died=True)` says what to run next of that shard, in a new worker;
  after a part that ended well, `Recovery.after(spec, died=False)` does. None: nothing more.
- `ShardLockedError` means that another job holds the shard: hand it to `watch.busy` and go on.
- Any other exception is the job's, not a clip's (full disk, a model that cannot be loaded): stop the workers, raise it.
- Nothing of a result passes through the driver: only what `ClipFinished` holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from openavs.labeling.job import Job, ShardSpec


@dataclass(frozen=True)
class ClipFinished:
    """One clip that a worker finished; it goes to the driver, for progress alone.

    `reason` counts failures (None if it is ok). `seconds` are wall time, `timings` seconds by stage, `cached` what the
    stage cache had and had not since the last clip, such as `{"captioner hits": 1}`.
    """

    shard: int
    clip: str
    status: str
    reason: str | None
    seconds: float
    timings: Mapping[str, float] = field(default_factory=dict)
    cached: Mapping[str, int] = field(default_factory=dict)


class ProgressListener(Protocol):
    """What an engine tells while it works (from one thread), and asks."""

    def ready(self, models: Mapping[str, Any]) -> None:
        """A worker has loaded its models."""

    def clip(self, done: ClipFinished) -> None:
        """A clip is finished."""

    def committed(self, shard: int) -> None:
        """A shard is committed."""

    def busy(self, spec: ShardSpec) -> None:
        """Another job holds this shard."""

    def died(self, spec: ShardSpec | None, how: str) -> None:
        """A worker died at this shard (None: before it had one); `how` is a short phrase such as `exit code -9`."""

    def stopping(self) -> bool:
        """Whether to finish the clips at work and stop. Ask at least once a second."""


class Executor(Protocol):
    """Works shards off."""

    def run(self, job: Job, shards: Iterable[ShardSpec], watch: ProgressListener) -> None:
        """Returns when all shards are committed or busy elsewhere, or when it was asked to stop and has."""
