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
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from openavs.labeling.executors.base import ProgressListener
from openavs.labeling.executors.pool import POLL, WorkerHandle, WorkerPool
from openavs.labeling.job import Job, ShardSpec
from openavs.labeling.shard import ShardLockedError
from openavs.labeling.worker import ShardWorker, environment, log_to_file

log = logging.getLogger(__name__)

INTERRUPTS = frozenset((signal.SIGINT, signal.SIGTERM))


@dataclass
class LocalExecutor:
    """Runs shards in `workers` processes; worker i sees the GPU `devices[i % len(devices)]`, if there are any.

    A worker that says nothing for `patience` seconds while it has a shard is killed and counts as dead (None: never).
    """

    workers: int = 1
    devices: tuple[str, ...] = ()
    patience: float | None = None

    def run(self, job: Job, shards: Iterable[ShardSpec], watch: ProgressListener) -> None:
        """See `Engine.run`. Workers are gone when this returns, however it does."""
        processes = _Processes(self, job, shards, watch)
        try:
            processes.run()
        finally:
            processes.kill()


@dataclass(eq=False)
class _Worker(WorkerHandle):
    slot: int
    process: BaseProcess
    pipe: Connection

    @property
    def exit(self) -> str:
        code = self.process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


class _Processes(WorkerPool[_Worker]):
    """Workers that are processes of this machine, each at the end of a pipe."""

    def __init__(self, engine: LocalExecutor, job: Job, shards: Iterable[ShardSpec], watch: ProgressListener) -> None:
        super().__init__(job, engine.workers, engine.patience, shards, watch)
        self.devices = engine.devices

    def kill(self) -> None:
        for worker in self.members:
            worker.process.kill()
        for worker in self.members:
            self._bury(worker)
        self.members.clear()

    def _start(self) -> _Worker:
        slot = min(set(range(self.size)) - {worker.slot for worker in self.members})
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(theirs, self.job, log.getEffectiveLevel()), name=f"openavs-worker-{slot}", daemon=True
        )
        device = self.devices[slot % len(self.devices)] if self.devices else None
        with _set(environment(self.job, device)), _signals_blocked():
            process.start()
        theirs.close()
        return _Worker(slot, process, ours)

    def _give(self, member: _Worker, spec: ShardSpec) -> None:
        self._send(member, spec)

    def _ask_to_stop(self, member: _Worker) -> None:
        self._send(member, None)

    def _send(self, worker: _Worker, word: ShardSpec | None) -> None:
        try:
            worker.pipe.send(word)
        except OSError:  # it is dead, which is noticed where deaths are
            log.debug("worker %d cannot be reached", worker.slot)

    def _listen(self) -> None:
        by_handle: dict[Any, _Worker] = {worker.pipe: worker for worker in self.members}
        by_handle |= {worker.process.sentinel: worker for worker in self.members}
        heard = connection.wait(list(by_handle), timeout=POLL)
        for worker in {id(by_handle[handle]): by_handle[handle] for handle in heard}.values():
            while (news := self._news(worker)) is not None:
                self._take(worker, *news)
            if not worker.process.is_alive():
                self._mourn(worker, worker.exit)

    def _news(self, worker: _Worker) -> tuple[str, Any] | None:
        """One thing that a worker sent, if there is any."""
        try:
            return worker.pipe.recv() if worker.pipe.poll() else None
        except (EOFError, OSError):  # its end of the pipe is closed: it is dead, or as good as
            worker.process.join(1.0)
            worker.process.kill()
            worker.process.join()
            return None

    def _kill(self, member: _Worker) -> None:
        member.process.kill()

    def _bury(self, member: _Worker) -> None:
        member.process.kill()
        member.process.join()
        member.pipe.close()


# --------------------------------------------------------------------------------------------- inside the process


def _work(pipe: Connection, job: Job, level: int) -> None:
    """A worker's life: models, then shards, until it is told to stop or the driver is gone."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    log_to_file(job, level)
    try:
        worker = ShardWorker(job)
        pipe.send(("ready", worker.models))
        while (spec := pipe.recv()) is not None:
            try:
                # What the driver sends meanwhile can only be the word to stop.
                worker.run(spec, tell=lambda done: pipe.send(("clip", done)), stop=lambda: pipe.poll(0))
            except ShardLockedError:
                pipe.send(("busy", None))
            else:
                pipe.send(("done", None))
    except (EOFError, BrokenPipeError):
        return
    except Exception as problem:
        log.exception("the worker ends")
        if type(problem).__module__ not in ("builtins", "openavs.errors"):
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
def _signals_blocked() -> Iterator[None]:
    """Blocks Ctrl-C and SIGTERM for the processes that are started inside, until they ignore both (`_work`).

    A signal that arrives here meanwhile is delivered at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # its start, which `Process.start` would cause, unblocks both
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
