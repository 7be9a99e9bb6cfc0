"""What runs in a Ray actor: a pipeline, one shard after another, and what the driver wants to hear about it."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import traceback
from typing import Any

import openavs
from openavs.errors import InputError, OpenAVSError
from openavs.labeling.executors.base import ClipFinished
from openavs.labeling.job import Job, ShardSpec
from openavs.labeling.locks import JOB, release
from openavs.labeling.manifest import read_manifest
from openavs.labeling.shard import ShardLockedError
from openavs.labeling.worker import ShardWorker, log_to_file

log = logging.getLogger(__name__)

NEWS = 0.5
"""Seconds that a call of `listen` waits for something to tell."""

Event = tuple[str, Any]
"""`here` (the host), `ready` (models), `clip` (ClipDone), `done`, `busy`, `fault` (an exception)."""


class RayWorker:
    """An actor of two threads: `load` and `work` take one, `listen` the other.

    All that happens is told through `listen`, in order; what `load` and `work` return says nothing.
    """

    def __init__(self, job: Job, version: str, level: int) -> None:
        self.job, self.version, self.level = job, version, level
        self.worker: ShardWorker | None = None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._events.put(("here", socket.gethostname()))

    def load(self) -> None:
        """Loads the models, when it is sure that this node has the same code and the same disk as the driver."""
        try:
            self._check()
            log_to_file(self.job, self.level)
            self.worker = ShardWorker(self.job)
            self._events.put(("ready", self.worker.models))
        except Exception as problem:  # noqa: BLE001 - sent to the driver, which raises it
            self._fault(problem)

    def work(self, spec: ShardSpec) -> None:
        """Works a shard off."""
        assert self.worker is not None
        try:
            self.worker.run(spec, tell=self._tell, stop=self._stop.is_set)
            self._events.put(("done", None))
        except ShardLockedError:
            self._events.put(("busy", None))
        except Exception as problem:  # noqa: BLE001 - sent to the driver, which raises it
            self._fault(problem)

    def listen(self, stopping: bool) -> list[Event]:
        """What has happened since the last call; `stopping` asks to end with the clip that is at work."""
        if stopping:
            self._stop.set()
        events = []
        try:
            events.append(self._events.get(timeout=NEWS))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            return events

    def leave(self) -> None:
        """Gives up the claim on the job's folder: Ray kills when it gets to it, and the driver goes on at once."""
        release(self.job.out, JOB)

    def _tell(self, done: ClipFinished) -> None:
        self._events.put(("clip", done))

    def _check(self) -> None:
        host = socket.gethostname()
        if openavs.__version__ != self.version:
            raise InputError(
                f"the node {host} has openavs {openavs.__version__} and the driver {self.version}; install the same"
            )
        plan = read_manifest(self.job.out)
        if plan is None or plan.key != self.job.key:
            raise InputError(
                f"the node {host} does not see this job at {self.job.out}; --out and the source have to lie on a disk "
                "that all nodes have under the same name"
            )

    def _fault(self, problem: Exception) -> None:
        log.error("the worker ends", exc_info=problem)
        if not isinstance(problem, OpenAVSError) and type(problem).__module__ != "builtins":
            problem = RuntimeError(f"{type(problem).__name__}: {problem}").with_traceback(problem.__traceback__)
        problem.add_note("".join(traceback.format_exception(problem)))
        self._events.put(("fault", problem))
