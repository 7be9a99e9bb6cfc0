"""The engine of one machine: worker processes that take one shard after another.

A process for each worker, because a decoder that crashes or a machine short of memory takes a process with it. Workers
are started anew after a death, end with the driver, and ignore Ctrl-C, which is the driver's to hand on.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from openavs.jobs.engine import ClipDone, Watcher
from openavs.jobs.job import Job, ShardSpec
from openavs.jobs.recovery import Recovery
from openavs.jobs.shard import ShardBusy
from openavs.jobs.worker import Worker, environment, log_to_file
from openavs.types import ModelError

log = logging.getLogger(__name__)

POLL = 0.2
"""Seconds after which the driver looks whether it is to stop."""
DEAD_STARTS = 2
"""So often in a row workers may die while they load their models."""


@dataclass
class LocalEngine:
    """Runs shards in `workers` processes; worker i sees the GPU `devices[i % len(devices)]`, if there are any.

    A worker that says nothing for `patience` seconds while it has a shard is killed and counts as dead (None: never).
    """

    workers: int = 1
    devices: tuple[str, ...] = ()
    patience: float | None = None

    def run(self, job: Job, shards: Iterable[ShardSpec], watch: Watcher) -> None:
        """See `Engine.run`. Workers are gone when this returns, however it does."""
        pool = _Pool(self, job, deque(shards), watch)
        try:
            pool.run()
        finally:
            pool.kill()


@dataclass
class _Worker:
    slot: int
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    spec: ShardSpec | None = None
    heard: float = field(default_factory=time.monotonic)

    @property
    def exit(self) -> str:
        code = self.process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


class _Pool:
    """The workers of one run, seen from the driver."""

    def __init__(self, engine: LocalEngine, job: Job, waiting: deque[ShardSpec], watch: Watcher) -> None:
        self.engine, self.job, self.waiting, self.watch = engine, job, waiting, watch
        self.recovery = Recovery(job)
        self.workers: list[_Worker] = []
        self.dead_starts = 0
        self.stopped = False

    def run(self) -> None:
        """Until nothing is waiting and nobody is at work."""
        while True:
            if not self.stopped and self.watch.stopping():
                self._stop()
            if not self.stopped:
                self._fill()
            if not self.workers or not (self.waiting or self._at_work()):
                return
            self._listen()

    def kill(self) -> None:
        """Ends all workers at once; nothing is lost by it but the clips they were at."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.pipe.close()
        self.workers.clear()

    # ------------------------------------------------------------------------------------------- giving out work

    def _at_work(self) -> bool:
        return any(worker.spec is not None for worker in self.workers)

    def _fill(self) -> None:
        """Starts workers as long as there is something to do for them, and gives shards to those without one."""
        busy = sum(worker.spec is not None for worker in self.workers)
        wanted = min(self.engine.workers, busy + len(self.waiting))
        slots = set(range(self.engine.workers)) - {worker.slot for worker in self.workers}
        while len(self.workers) < wanted:
            self.workers.append(self._start(slots.pop()))
        for worker in self.workers:
            if worker.ready and worker.spec is None and self.waiting:
                self._give(worker, self.waiting.popleft())

    def _start(self, slot: int) -> _Worker:
        devices = self.engine.devices
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(theirs, self.job, log.getEffectiveLevel()), name=f"openavs-worker-{slot}", daemon=True
        )
        with _set(environment(self.job, devices[slot % len(devices)] if devices else None)):
            process.start()
        theirs.close()
        return _Worker(slot, process, ours)

    def _give(self, worker: _Worker, spec: ShardSpec) -> None:
        worker.spec, worker.heard = spec, time.monotonic()
        try:
            worker.pipe.send(spec)
        except OSError:  # it is dead, which is noticed where deaths are
            log.debug("worker %d cannot be reached", worker.slot)

    def _stop(self) -> None:
        """Asks workers to end with the clip they are at; those that have nothing to do are ended."""
        self.stopped = True
        self.waiting.clear()
        for worker in [worker for worker in self.workers if worker.spec is None]:
            worker.process.kill()
            self._bury(worker)
        for worker in self.workers:
            try:
                worker.pipe.send(None)
            except OSError:
                log.debug("worker %d cannot be reached", worker.slot)

    # ------------------------------------------------------------------------------------------- what they answer

    def _listen(self) -> None:
        by_handle: dict[Any, _Worker] = {worker.pipe: worker for worker in self.workers}
        by_handle |= {worker.process.sentinel: worker for worker in self.workers}
        heard = connection.wait(list(by_handle), timeout=POLL)
        for worker in {id(by_handle[handle]): by_handle[handle] for handle in heard}.values():
            if not self._read(worker):
                self._mourn(worker)
        self._kill_the_silent()

    def _read(self, worker: _Worker) -> bool:
        """Takes what a worker sent; False if it is dead."""
        while (news := self._news(worker)) is not None:
            worker.heard = time.monotonic()
            self._take(worker, *news)
        return worker.process.is_alive()

    def _news(self, worker: _Worker) -> tuple[str, Any] | None:
        """One thing that a worker sent, if there is any."""
        try:
            return worker.pipe.recv() if worker.pipe.poll() else None
        except (EOFError, OSError):  # its end of the pipe is closed: it is dead, or as good as
            worker.process.join(1.0)
            worker.process.kill()
            worker.process.join()
            return None

    def _take(self, worker: _Worker, kind: str, value: Any) -> None:
        if kind == "ready":
            worker.ready, self.dead_starts = True, 0
            self.watch.ready(value)
        elif kind == "clip":
            assert isinstance(value, ClipDone)
            self.watch.clip(value)
        elif kind == "fault":
            raise value
        else:
            spec, worker.spec = worker.spec, None
            assert spec is not None
            if kind == "busy":
                self.watch.busy(spec)
            elif not self.stopped:
                self._follow(spec, died=False)

    def _follow(self, spec: ShardSpec, *, died: bool) -> None:
        following = self.recovery.after(spec, died=died)
        if following is None:
            self.watch.committed(spec.number)
        else:
            self.waiting.appendleft(following)

    def _mourn(self, worker: _Worker) -> None:
        """A worker has died: its shard goes to another, by what `Recovery` says."""
        spec = worker.spec
        self._bury(worker)
        if self.stopped:
            return
        self.watch.died(spec, worker.exit)
        if not worker.ready:
            self.dead_starts += 1
            if self.dead_starts >= DEAD_STARTS:
                raise ModelError(
                    f"workers die while they load the models ({worker.exit}), which is often for want of memory; "
                    f"use fewer --workers, and see {self.job.out / 'log'}"
                )
        if spec is not None:
            self._follow(spec, died=True)

    def _bury(self, worker: _Worker) -> None:
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)

    def _kill_the_silent(self) -> None:
        patience = self.engine.patience
        for worker in self.workers:
            if patience is not None and worker.spec is not None and time.monotonic() - worker.heard > patience:
                log.warning("worker %d has said nothing for %g s and is killed", worker.slot, patience)
                worker.process.kill()


# --------------------------------------------------------------------------------------------- inside the process


def _work(pipe: Connection, job: Job, level: int) -> None:
    """A worker's life: models, then shards, until it is told to stop or the driver is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    log_to_file(job, level)
    try:
        worker = Worker(job)
        pipe.send(("ready", worker.models))
        while (spec := pipe.recv()) is not None:
            try:
                # What the driver sends meanwhile can only be the word to stop.
                worker.run(spec, tell=lambda done: pipe.send(("clip", done)), stop=lambda: pipe.poll(0))
            except ShardBusy:
                pipe.send(("busy", None))
            else:
                pipe.send(("done", None))
    except (EOFError, BrokenPipeError):
        return
    except Exception as problem:
        log.exception("the worker ends")
        if type(problem).__module__ not in ("builtins", "openavs.types"):
            problem = RuntimeError(f"{type(problem).__name__}: {problem}")  # it may not travel
        problem.add_note("".join(traceback.format_exc()))
        pipe.send(("fault", problem))


def _end_with_the_driver() -> None:
    """Ends this process when the driver ends, however it does; whatever is half done is done again by the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _set(changes: dict[str, str]) -> Iterator[None]:
    """Changes the environment for the processes that are started inside."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
