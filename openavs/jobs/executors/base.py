"""Executors: they run the shards of a job, and resume those whose worker crashed.

Rules for every executor:
- A worker builds its pipeline once (`worker.ShardWorker`) and runs shards with it.
- `run_shard` returns the completion of a shard, or None if it was stopped or ran some clips only.
- When a worker crashes or hangs, `Recovery.after(spec, crashed=True)` returns what to run next of that shard, in a new
  worker; after some clips that ran alone, `Recovery.after(spec, crashed=False)` does. None: nothing more.
- `ShardLockedError` means that another job holds the shard: report it to the listener and go on.
- Any other exception is a fault of the job and not of a clip (full disk, a model that cannot be loaded): end the
  workers and raise it.
- Results do not pass through the driver: only `ClipFinished` does.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from openavs.errors import ModelError
from openavs.jobs.checkpoint import ShardJournal, journal_path
from openavs.jobs.index import failed_row
from openavs.jobs.job import ClipFinished, Job, ShardSpec
from openavs.jobs.manifest import shard_samples

logger = logging.getLogger(__name__)

POLL = 0.2
"""Seconds between two checks whether the driver is to stop."""
MAX_FAILED_STARTS = 3
"""Maximum consecutive crashes of workers while they load their models."""


class ProgressListener(Protocol):
    """The events of an executor; calls do not overlap."""

    def ready(self, models: Mapping[str, Any]) -> None:
        """A worker has loaded its models."""

    def clip(self, done: ClipFinished) -> None:
        """A clip is finished."""

    def completed(self, shard: int) -> None:
        """A shard is completed."""

    def busy(self, spec: ShardSpec) -> None:
        """Another job holds this shard."""

    def crashed(self, spec: ShardSpec | None, how: str) -> None:
        """A worker crashed at this shard (None: before it had one); `how` is a phrase such as `exit code -9`."""

    def stopping(self) -> bool:
        """Whether to finish the clips under way and stop; called at least once a second."""


class Executor(Protocol):
    """Runs shards."""

    def run(self, job: Job, shards: Iterable[ShardSpec], listener: ProgressListener) -> None:
        """Return when all shards are completed or held by another job, or after `listener.stopping()` was true."""


@dataclass(eq=False)
class WorkerHandle:
    """A worker as the driver sees it: whether it is ready, its shard, and the time of its last event."""

    ready: bool = field(default=False, init=False)
    spec: ShardSpec | None = field(default=None, init=False)
    last_event: float = field(default_factory=time.monotonic, init=False)


W = TypeVar("W", bound=WorkerHandle)


class WorkerPool(ABC, Generic[W]):
    """At most `size` workers, to which shards are given one by one; subclasses start, call and kill workers.

    A worker that sends no event for `stall_timeout` seconds while it has a shard is killed (None: never).
    """

    logs: ClassVar[str] = ""
    """Further logs that may explain a crash, for error messages."""

    def __init__(
        self,
        job: Job,
        size: int,
        stall_timeout: float | None,
        shards: Iterable[ShardSpec],
        listener: ProgressListener,
    ) -> None:
        self.job, self.size, self.stall_timeout, self.listener = job, size, stall_timeout, listener
        self.recovery = Recovery(job)
        self.workers: list[W] = []
        self.shards = iter(shards)
        self.waiting: deque[ShardSpec] = deque()  # the next shards, after those that are resumed
        self.failed_starts = 0
        self.stopped = False

    def run(self) -> None:
        """Run until no shard is waiting and no worker has one."""
        while True:
            if not self.stopped and self.listener.stopping():
                self._stop()
            if not self.stopped:
                self._assign()
            if not any(worker.spec for worker in self.workers) and (self.stopped or not self._waiting()):
                return
            self._poll()
            self._kill_stalled()

    # ------------------------------------------------------------------------------------------- by the subclass

    @abstractmethod
    def kill(self) -> None:
        """Kill all workers; only the clips under way are lost."""

    @abstractmethod
    def _start(self) -> W:
        """Start a worker, which begins by loading the models."""

    @abstractmethod
    def _send(self, worker: W, spec: ShardSpec) -> None:
        """Send a shard to a worker."""

    @abstractmethod
    def _send_stop(self, worker: W) -> None:
        """Make a worker end after the clip under way."""

    @abstractmethod
    def _poll(self) -> None:
        """Wait up to `POLL` seconds for events; call `_receive` for each and `_crashed` for crashed workers."""

    @abstractmethod
    def _kill(self, worker: W) -> None:
        """Kill a worker; `_poll` finds the crash."""

    @abstractmethod
    def _free(self, worker: W) -> None:
        """End a worker and free its resources."""

    # --------------------------------------------------------------------------------------------------- shards

    def _waiting(self, count: int = 1) -> bool:
        """Return whether at least `count` shards are waiting; no more are read."""
        while len(self.waiting) < count and (following := next(self.shards, None)) is not None:
            self.waiting.append(following)
        return len(self.waiting) >= count

    def _assign(self) -> None:
        """Give shards to idle workers, and start workers while more shards wait than workers are idle."""
        for worker in self.workers:
            if worker.ready and worker.spec is None and self._waiting():
                worker.spec, worker.last_event = self.waiting.popleft(), time.monotonic()
                self._send(worker, worker.spec)
        idle = sum(worker.spec is None for worker in self.workers)
        while len(self.workers) < self.size and self._waiting(idle + 1):
            self.workers.append(self._start())
            idle += 1

    def _stop(self) -> None:
        """Make workers end after the clips under way; idle ones are ended now."""
        self.stopped = True
        for worker in list(self.workers):
            if worker.spec is None:
                self._remove(worker)
            else:
                self._send_stop(worker)

    # --------------------------------------------------------------------------------------------------- events

    def _receive(self, worker: W, kind: str, value: Any) -> None:
        """Handle an event: `ready` (models), `clip` (ClipFinished), `done`, `busy`, `fault` (an exception)."""
        worker.last_event = time.monotonic()
        if kind == "ready":
            worker.ready, self.failed_starts = True, 0
            self.listener.ready(value)
        elif kind == "clip":
            assert isinstance(value, ClipFinished)
            self.listener.clip(value)
        elif kind == "fault":
            raise value
        else:
            spec, worker.spec = worker.spec, None
            assert spec is not None
            if kind == "busy":
                self.listener.busy(spec)
            elif not self.stopped:
                self._follow(spec, crashed=False)

    def _follow(self, spec: ShardSpec, *, crashed: bool) -> None:
        following = self.recovery.after(spec, crashed=crashed)
        if following is None:
            self.listener.completed(spec.number)
        else:
            self.waiting.appendleft(following)

    def _crashed(self, worker: W, how: str) -> None:
        """Handle a crash: `Recovery` decides how the shard is resumed."""
        self._remove(worker)
        if self.stopped:
            return
        self.listener.crashed(worker.spec, how)
        if not worker.ready:
            self.failed_starts += 1
            if self.failed_starts >= MAX_FAILED_STARTS:
                raise ModelError(
                    f"workers crash while they load the models ({how}), which often means too little memory; "
                    f"use fewer --workers, and see {self.job.out / 'log'}{self.logs}"
                )
        if worker.spec is not None:
            self._follow(worker.spec, crashed=True)

    def _remove(self, worker: W) -> None:
        self.workers.remove(worker)
        self._free(worker)

    def _kill_stalled(self) -> None:
        now = time.monotonic()
        for worker in self.workers:
            stalled = worker.spec is not None and self.stall_timeout is not None
            if stalled and now - worker.last_event > (self.stall_timeout or 0.0):
                logger.warning("a worker has sent no event for %g s and is killed", self.stall_timeout)
                worker.last_event = now
                self._kill(worker)


MAX_SOLO_ATTEMPTS = 2
"""Maximum crashes of a clip that runs alone."""
MAX_IDLE_CRASHES = 3
"""Maximum crashes at a shard while no clip is under way."""


@dataclass
class Recovery:
    """Recovery after the crash of a worker: of a decoder, by a kill, by missing memory; over all shards of a job.

    Clips are processed in order, so only the few that were begun and not finished can be the cause. Each of them is
    tried alone, in a worker of its own; one that crashes it twice is recorded as `worker_crashed` and not tried again.
    Then the shard is resumed. Every crash either finishes clips or records one as failed: there is no endless loop.
    """

    job: Job
    _suspects: dict[int, list[str]] = field(default_factory=dict)
    _alone: Counter[tuple[int, str]] = field(default_factory=Counter)
    _idle: Counter[int] = field(default_factory=Counter)

    def after(self, spec: ShardSpec, *, crashed: bool) -> ShardSpec | None:
        """Return the spec to run after `spec` ended; None: the shard is completed.

        Raises:
            ModelError: workers crash at this shard while no clip is under way.
        """
        suspects = self._suspects.setdefault(spec.number, [])
        if spec.only is None:
            if not crashed:
                return None
            suspects[:] = self._begun(spec)
        elif not crashed:
            suspects.remove(spec.only[0])
        else:
            self._count(spec, spec.only[0], suspects)
        return spec.part(suspects[0]) if suspects else spec.whole()

    def _begun(self, spec: ShardSpec) -> list[str]:
        """Return the clips that were under way, in order."""
        begun = self._journal(spec).begun
        found = [sample.id for sample in shard_samples(spec) if sample.id in begun]
        if not found:
            self._idle[spec.number] += 1
            if self._idle[spec.number] >= MAX_IDLE_CRASHES:
                raise ModelError(
                    f"workers crashed {MAX_IDLE_CRASHES} times at shard {spec.number} with no clip under way; "
                    f"see {self.job.out / 'log'}, and use fewer --workers if memory is short"
                )
        return found

    def _count(self, spec: ShardSpec, clip: str, suspects: list[str]) -> None:
        self._alone[spec.number, clip] += 1
        if self._alone[spec.number, clip] < MAX_SOLO_ATTEMPTS:
            return
        sample = next(sample for sample in shard_samples(spec) if sample.id == clip)
        sentence = f"the worker crashed {MAX_SOLO_ATTEMPTS} times while it ran nothing but this clip"
        self._journal(spec).finish(failed_row(sample, "worker_crashed", sentence), {})
        suspects.remove(clip)

    def _journal(self, spec: ShardSpec) -> ShardJournal:
        return ShardJournal.read(journal_path(self.job.out, spec.number))
