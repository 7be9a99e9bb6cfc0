"""Executors and their workers: they run the shards of a job, and resume those whose worker crashed.

Rules for every executor:
- A worker builds its pipeline once (`ShardWorker`) and runs shards with it.
- `run_shard` returns the completion of a shard, or None if it was stopped or ran some clips only.
- When a worker crashes or hangs, `Recovery.after(spec, crashed=True)` returns what to run next of that shard, in a new
  worker; after some clips that ran alone, `Recovery.after(spec, crashed=False)` does. None: nothing more.
- `ShardLockedError` means that another job holds the shard: report it to the listener and go on.
- Any other exception is a fault of the job and not of a clip (full disk, a model that cannot be loaded): end the
  workers and raise it.
- Results do not pass through the driver: only `ClipFinished` does.
"""

from __future__ import annotations

import gc
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

from openavs.errors import ModelError
from openavs.jobs.checkpoint import ShardJournal, log_path
from openavs.jobs.index import failed_row
from openavs.jobs.job import CacheCounter, ClipFinished, Job, ProgressListener, ShardSpec, build, models_of
from openavs.jobs.job_store import attach
from openavs.jobs.manifest import shard_samples
from openavs.jobs.shard import run_shard
from openavs.models.device import release_memory
from openavs.utils.text import SafeFormatter

logger = logging.getLogger(__name__)

POLL = 0.2
"""Seconds between two checks whether the driver is to stop."""
MAX_FAILED_STARTS = 3
"""Maximum consecutive crashes of workers while they load their models."""


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
        return ShardJournal.open(self.job.out, spec.number)


GC_INTERVAL = 32
"""Clips after which unused memory is returned to the system."""


class ShardWorker:
    """The pipeline of a job in a process of its own, and `run_shard` with it.

    Raises:
        OpenAVSError: the recipe or one of its models cannot be used.
    """

    def __init__(self, job: Job) -> None:
        if job.store is not None:
            attach(job.out, job.store, job.owner)
        self.pipeline, self.cache = build(job)
        self.models = models_of(self.pipeline)
        self._cached = CacheCounter(self.cache)
        self._clips = 0
        gc.collect()
        gc.freeze()  # the collector skips the models: `release_memory` takes 2 ms instead of 0.4 s

    def run(self, spec: ShardSpec, *, on_clip: Callable[[ClipFinished], None], stop: Callable[[], bool]) -> Any:
        """Call `run_shard`; events of clips include hits and misses of the stage cache."""

        def finished(done: ClipFinished) -> None:
            on_clip(replace(done, cached=self._cached()))
            self._clips += 1
            if self._clips % GC_INTERVAL == 0:
                release_memory()

        try:
            return run_shard(spec, self.pipeline, on_clip=finished, stop=stop)
        finally:
            release_memory()


def log_to_file(job: Job, level: int = logging.WARNING) -> None:
    """Send this process's log to a file of its own in `OUT/log`, which is not hashed.

    Records that cannot be written, such as on a full disk, are lost; the fault is reported with the results.
    """
    logging.raiseExceptions = False
    with suppress(OSError):
        handler = logging.FileHandler(log_path(job.out, "worker", ".log"))
        handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.basicConfig(handlers=[handler], level=level)


def environment(job: Job, device: str | None = None) -> dict[str, str]:
    """Return the environment variables of a worker: its threads, its heaps, and the GPU that it may use, if any.

    glibc would give each thread that comes and goes with a clip a heap of its own, and keep the gaps in all of them.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    found = dict.fromkeys(names, str(job.threads)) | {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}
    return found if device is None else {**found, "CUDA_VISIBLE_DEVICES": device}
