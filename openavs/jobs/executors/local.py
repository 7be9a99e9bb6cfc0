"""Executors of one machine: worker processes that take one shard after another, or this process.

Each worker is a process, because a decoder that crashes or a machine short of memory ends a process. Workers are
replaced after a crash, end with the driver, and ignore Ctrl-C, which the driver handles.
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

from openavs.jobs.executors.base import POLL, ShardWorker, WorkerHandle, WorkerPool, environment, log_to_file
from openavs.jobs.job import Job, ProgressListener, ShardSpec
from openavs.jobs.shard import ShardLockedError

logger = logging.getLogger(__name__)

INTERRUPTS = frozenset((signal.SIGINT, signal.SIGTERM))


@dataclass
class LocalExecutor:
    """Runs shards in `workers` processes; worker i uses the GPU `devices[i % len(devices)]`, if there are any.

    A worker that sends no event for `stall_timeout` seconds while it has a shard is killed (None: never).
    """

    workers: int = 1
    devices: tuple[str, ...] = ()
    stall_timeout: float | None = None

    def run(self, job: Job, shards: Iterable[ShardSpec], listener: ProgressListener) -> None:
        """See `Executor.run`. All workers have ended when this returns or raises."""
        pool = _ProcessPool(self, job, shards, listener)
        try:
            pool.run()
        finally:
            pool.kill()


@dataclass(eq=False)
class _Worker(WorkerHandle):
    slot: int
    process: BaseProcess
    pipe: Connection

    @property
    def exit(self) -> str:
        code = self.process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


class _ProcessPool(WorkerPool[_Worker]):
    """Workers that are processes of this machine, each connected by a pipe."""

    def __init__(
        self, executor: LocalExecutor, job: Job, shards: Iterable[ShardSpec], listener: ProgressListener
    ) -> None:
        super().__init__(job, executor.workers, executor.stall_timeout, shards, listener)
        self.devices = executor.devices

    def kill(self) -> None:
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            self._free(worker)
        self.workers.clear()

    def _start(self) -> _Worker:
        slot = min(set(range(self.size)) - {worker.slot for worker in self.workers})
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_work,
            args=(theirs, self.job, logger.getEffectiveLevel()),
            name=f"openavs-worker-{slot}",
            daemon=True,
        )
        device = self.devices[slot % len(self.devices)] if self.devices else None
        with _environment(environment(self.job, device)), _signals_blocked():
            process.start()
        theirs.close()
        return _Worker(slot, process, ours)

    def _send(self, worker: _Worker, spec: ShardSpec) -> None:
        self._write(worker, spec)

    def _send_stop(self, worker: _Worker) -> None:
        self._write(worker, None)

    def _write(self, worker: _Worker, message: ShardSpec | None) -> None:
        try:
            worker.pipe.send(message)
        except OSError:  # it has crashed, which `_poll` finds
            logger.debug("worker %d cannot be reached", worker.slot)

    def _poll(self) -> None:
        by_handle: dict[Any, _Worker] = {worker.pipe: worker for worker in self.workers}
        by_handle |= {worker.process.sentinel: worker for worker in self.workers}
        ready = connection.wait(list(by_handle), timeout=POLL)
        for worker in {id(by_handle[handle]): by_handle[handle] for handle in ready}.values():
            while (event := self._event(worker)) is not None:
                self._receive(worker, *event)
            if not worker.process.is_alive():
                self._crashed(worker, worker.exit)

    def _event(self, worker: _Worker) -> tuple[str, Any] | None:
        """Return the next event of a worker, if there is one."""
        try:
            return worker.pipe.recv() if worker.pipe.poll() else None
        except (EOFError, OSError):  # its end of the pipe is closed: it has crashed, or is about to
            worker.process.join(1.0)
            worker.process.kill()
            worker.process.join()
            return None

    def _kill(self, worker: _Worker) -> None:
        worker.process.kill()

    def _free(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


# --------------------------------------------------------------------------------------------- inside the process


def _work(pipe: Connection, job: Job, level: int) -> None:
    """Load the models, then run shards until the driver sends None or ends."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    threading.Thread(target=_end_with_driver, daemon=True).start()
    log_to_file(job, level)
    try:
        worker = ShardWorker(job)
        pipe.send(("ready", worker.models))
        while (spec := pipe.recv()) is not None:
            try:
                # The only message that can arrive meanwhile is the one to stop.
                worker.run(spec, on_clip=lambda done: pipe.send(("clip", done)), stop=lambda: pipe.poll(0))
            except ShardLockedError:
                pipe.send(("busy", None))
            else:
                pipe.send(("done", None))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the driver has ended
        return
    except Exception as error:
        logger.exception("the worker ends")
        if type(error).__module__ not in ("builtins", "openavs.errors"):
            error = RuntimeError(f"{type(error).__name__}: {error}")  # others may not be picklable
        error.add_note("".join(traceback.format_exc()))
        pipe.send(("fault", error))


def _end_with_driver() -> None:
    """End this process when the driver ends, however it does; the clip under way is run again by the next run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block Ctrl-C and SIGTERM for the processes that are started inside, until they ignore both (`_work`).

    A signal that arrives in this process meanwhile is delivered at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it, which `Process.start` would do, unblocks both
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Change the environment of the processes that are started inside."""
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
