"""The executor of a Ray cluster: actors that take one shard after another, on whatever nodes there are.

The cluster is a running one, or a new one on this machine.

Ray places processes and reports crashes. Completion files on the shared disk define what is done, as with every
executor, and `Recovery` what follows a crash: actors are not restarted and calls not repeated by Ray, whose retries
have no limit or lose rows. Each actor has at most one shard and one pending call of `events`; nothing else is ever in
the object store.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import openavs
from openavs.errors import InputError, OpenAVSError
from openavs.jobs.executors.base import POLL, ShardWorker, WorkerHandle, WorkerPool, environment, log_to_file
from openavs.jobs.job import ClipFinished, Job, ProgressListener, ShardSpec
from openavs.jobs.job_store import attach
from openavs.jobs.locks import JOB, release
from openavs.jobs.manifest import IDENTITY, read_manifest
from openavs.jobs.shard import ShardLockedError
from openavs.utils.optional_deps import import_optional

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT = 5.0
"""Seconds in which idle workers release their locks before all are killed."""
SCHEDULING_TIMEOUT = 300.0
"""Seconds that a job waits for a first node, or for a new one when all its nodes are gone."""
EVENTS_TIMEOUT = 0.5
"""Seconds that a call of `events` waits for an event."""

Event = tuple[str, Any]
"""`placed` (the host), `ready` (models), `clip` (ClipFinished), `done`, `busy`, `fault` (an exception)."""


@dataclass
class RayExecutor:
    """Runs shards in actors.

    Attributes:
        workers: Number of workers; by default one for each GPU, or one for each CPU but one.
        gpus: Share of a GPU for each worker; by default 0 where the cluster has none or the recipe wants none, else a
            whole one, or a half, a third ... where there are more workers than GPUs.
        address: Address of the cluster, see `connected`.
        stall_timeout: Seconds without an event after which a worker that has a shard is killed (None: never).
    """

    workers: int | None = None
    gpus: float | None = None
    address: str | None = None
    stall_timeout: float | None = None

    def run(self, job: Job, shards: Iterable[ShardSpec], listener: ProgressListener) -> None:
        """See `Executor.run`.

        Raises:
            InputError: the cluster cannot be reached, or the workers do not fit it.
        """
        with connected(self.address) as ray:
            each = WorkerResources(float(job.threads), self._gpus(ray, job))
            workers = plan_workers(ray, each, self.workers)
            pool = _ActorPool(ray, each, job, workers, self.stall_timeout, shards, listener)
            try:
                pool.run()
            finally:
                pool.kill()

    def _gpus(self, ray: Any, job: Job) -> float:
        if self.gpus is not None:
            return self.gpus
        wanted = str(job.recipe.get("device", "auto")).partition(":")[0] in ("auto", "cuda")
        known = int(ray.cluster_resources().get("GPU", 0.0))
        return 1.0 / ceil((self.workers or 1) / known) if wanted and known else 0.0


@dataclass(eq=False)
class _Actor(WorkerHandle):
    """`pending` is the pending call of `events`; `placed` whether Ray has placed the actor on a node."""

    handle: Any
    pending: Any
    placed: bool = False


class _ActorPool(WorkerPool[_Actor]):
    """Workers that are actors of a cluster."""

    logs = " and Ray's own logs"

    def __init__(self, ray: Any, each: WorkerResources, job: Job, size: int, *rest: Any) -> None:
        super().__init__(job, size, *rest)
        self.ray, self.each = ray, each
        self.last_placed = time.monotonic()

    def kill(self) -> None:
        idle = [actor.handle.release.remote() for actor in self.workers if actor.ready and actor.spec is None]
        if idle:
            self.ray.wait(idle, num_returns=len(idle), timeout=SHUTDOWN_TIMEOUT)
        for actor in self.workers:
            self.ray.kill(actor.handle)
        self.workers.clear()

    def _start(self) -> _Actor:
        # A worker without a GPU is given none: on a node that has some, all workers would use the first.
        variables = environment(self.job, None if self.each.gpus else "")
        remote = self.ray.remote(RayWorker).options(
            num_cpus=self.each.cpus,
            num_gpus=self.each.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": variables},
        )
        handle = remote.remote(self.job, openavs.__version__, logger.getEffectiveLevel())
        handle.load.remote()
        return _Actor(handle, handle.events.remote(False))

    def _send(self, worker: _Actor, spec: ShardSpec) -> None:
        worker.handle.work.remote(spec)

    def _send_stop(self, worker: _Actor) -> None:
        """Nothing to send: the next call of `events` carries it."""

    def _poll(self) -> None:
        by_call = {actor.pending: actor for actor in self.workers}
        answered, rest = self.ray.wait(list(by_call), num_returns=1, timeout=POLL)
        if answered and rest:  # others that have answered meanwhile
            answered += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for call in answered:
            self._read(by_call[call])
        self._check_placement()

    def _read(self, actor: _Actor) -> None:
        try:
            events = self.ray.get(actor.pending)
        except self.ray.exceptions.RayActorError as error:
            logger.debug("a worker is gone: %s", error)
            self._crashed(actor, type(error).__name__)
            return
        actor.pending = actor.handle.events.remote(self.stopped)
        for kind, value in events:
            if kind == "placed":
                actor.placed = True
                logger.info("a worker is on %s", value)
            else:
                self._receive(actor, kind, value)

    def _check_placement(self) -> None:
        """End the job when no worker has been on a node for too long."""
        if any(actor.placed for actor in self.workers):
            self.last_placed = time.monotonic()
        elif time.monotonic() - self.last_placed > SCHEDULING_TIMEOUT:
            raise InputError(
                f"the Ray cluster has had no room for a worker for {SCHEDULING_TIMEOUT:g} s (see `ray status`); "
                "add nodes, then run the same command again: finished clips are kept"
            )

    def _kill(self, worker: _Actor) -> None:
        self.ray.kill(worker.handle)  # its pending call fails then

    def _free(self, worker: _Actor) -> None:
        self.ray.kill(worker.handle)  # one that was only unreachable must not come back


# ----------------------------------------------------------------------------------------------- inside the actor


class RayWorker:
    """An actor of two threads: `load` and `work` take one, `events` the other."""

    def __init__(self, job: Job, version: str, level: int) -> None:
        self.job, self.version, self.level = job, version, level
        self.worker: ShardWorker | None = None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._events.put(("placed", socket.gethostname()))

    def load(self) -> None:
        """Load the models, after a check that this node has the code and the disk of the driver."""
        try:
            self._check()
            log_to_file(self.job, self.level)
            self.worker = ShardWorker(self.job)
            self._events.put(("ready", self.worker.models))
        except Exception as error:  # noqa: BLE001 - sent to the driver, which raises it
            self._fault(error)

    def work(self, spec: ShardSpec) -> None:
        """Run a shard."""
        assert self.worker is not None
        try:
            self.worker.run(spec, on_clip=self._clip, stop=self._stop.is_set)
            self._events.put(("done", None))
        except ShardLockedError:
            self._events.put(("busy", None))
        except Exception as error:  # noqa: BLE001 - sent to the driver, which raises it
            self._fault(error)

    def events(self, stopping: bool) -> list[Event]:
        """Return the events since the last call, in order; `stopping` ends the shard after the clip under way."""
        if stopping:
            self._stop.set()
        found = []
        try:
            found.append(self._events.get(timeout=EVENTS_TIMEOUT))
            while True:
                found.append(self._events.get_nowait())
        except queue.Empty:
            return found

    def release(self) -> None:
        """Release the lock on the job's folder: Ray kills actors some time after the driver has ended."""
        release(self.job.out, JOB)

    def _clip(self, done: ClipFinished) -> None:
        self._events.put(("clip", done))

    def _check(self) -> None:
        host = socket.gethostname()
        if openavs.__version__ != self.version:
            raise InputError(
                f"the node {host} has openavs {openavs.__version__} and the driver {self.version}; install the same"
            )
        if self.job.store is not None:
            attach(self.job.out, self.job.store, self.job.owner).pull(IDENTITY)
        manifest = read_manifest(self.job.out)
        if manifest is None or manifest.key != self.job.key:
            raise InputError(
                f"the node {host} does not have this job at {self.job.out}; --out and the source have to be on a disk "
                "that all nodes have under the same name"
            )

    def _fault(self, error: Exception) -> None:
        logger.error("the worker ends", exc_info=error)
        if not isinstance(error, OpenAVSError) and type(error).__module__ != "builtins":
            error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
        error.add_note("".join(traceback.format_exception(error)))
        self._events.put(("fault", error))


logger = logging.getLogger(__name__)

OBJECT_STORE = 100_000_000
"""Bytes of shared memory of a new cluster: specs and events go through it, never images or sound."""

CONNECT_TIMEOUT = 10.0
"""Seconds within which a cluster has to answer."""

RELEASE_TIMEOUT = 10.0
"""Seconds to wait for resources of processes that have just ended."""

_KINDS = ("CPU", "GPU")


@dataclass(frozen=True)
class WorkerResources:
    """The CPUs and GPUs that Ray reserves for a worker; it does not enforce them."""

    cpus: float = 1.0
    gpus: float = 0.0


@contextmanager
def connected(address: str | None = None) -> Iterator[Any]:
    """Connect to a cluster for the duration of the block and yield the `ray` module; no usage report, no dashboard.

    Args:
        address: Address of a cluster; None: that of RAY_ADDRESS, else one that runs on this machine, else a new one
            that ends with the block. A connection of the caller is used and kept.

    Raises:
        InputError: Ray is not installed, no cluster is at the address, or a new one does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = import_optional("ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    with _signal_handlers_kept():
        _connect(ray, address or os.environ.get("RAY_ADDRESS"))
    try:
        yield ray
    finally:
        with _signal_handlers_kept():
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}  # it warns about safe settings
    found = _running() if address in (None, "auto") else address
    if found == "local" or (found is None and address is None):
        logger.info("no Ray cluster runs on this machine: starting one for this job")
        try:
            ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        except Exception as error:  # Ray has no exception class for a node that does not start
            why = str(error).split(". ")[0]
            raise InputError(
                f"Ray could not start a cluster on this machine ({why:.200}); run the same command again when it is "
                "less busy, or start one with `ray start --head`"
            ) from error
        return
    # Ray would wait for a minute and then end the process.
    if found is None or not _answers(found):
        raise InputError(
            f"no Ray cluster can be reached at {found or address}; start one with `ray start --head`, or "
            "leave the address and RAY_ADDRESS away for one on this machine"
        )
    ray.init(found, **quiet)


def _running() -> str | None:
    """Return the address of the cluster that `ray start` made on this machine, not that of another program."""
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        address = (Path(temporary) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return None
    return address if address and _answers(address) else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()
    except (OSError, ValueError):
        return False
    return True


def plan_workers(ray: Any, each: WorkerResources, wanted: int | None) -> int:
    """Return the number of workers: as many as wanted, or one for each GPU, or one for each CPU but one.

    Raises:
        InputError: they do not fit, or would take every CPU. Ray would wait silently.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = fitting_workers(nodes, {name: sum(node.get(name, 0.0) for node in nodes) for name in _KINDS}, each, wanted)
    deadline = time.monotonic() + RELEASE_TIMEOUT
    while True:
        waited = time.monotonic() > deadline
        try:
            workers = fitting_workers(nodes, ray.available_resources(), each, wanted)
            if waited or workers == most:
                return workers
        except InputError:
            if waited:
                raise
        time.sleep(0.2)


def fitting_workers(
    nodes: Sequence[Mapping[str, float]], free: Mapping[str, float], each: WorkerResources, wanted: int | None
) -> int:
    """Return `plan_workers` from the resources of each node and those that are free in all."""
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    # One CPU stays free: a pool that takes all of them starves everything else on the cluster.
    left = min(cpus - 1, free.get("CPU", 0.0))
    most = min(sum(_slots(node, each) for node in nodes), int(left / each.cpus + 1e-9))
    if each.gpus:
        most = min(most, int(free.get("GPU", 0.0) / each.gpus + 1e-9))
    workers = wanted if wanted is not None else max(most, 1)
    if workers > most:
        size = f"{each.cpus:g} CPUs" + (f" and {each.gpus:g} GPUs" if each.gpus else "")
        gpus = f" and {free.get('GPU', 0.0):g} GPUs" if each.gpus else ""
        fix = f"use --workers {most}" if most else "use --executor local, or a larger cluster"
        raise InputError(
            f"{workers} workers of {size} each do not fit the Ray cluster, of whose {cpus:g} CPUs "
            f"{free.get('CPU', 0.0):g}{gpus} are free and one has to stay so; {fix}"
        )
    return workers


def _slots(node: Mapping[str, float], each: WorkerResources) -> int:
    slots = int(node.get("CPU", 0.0) / each.cpus + 1e-9)
    return min(slots, int(node.get("GPU", 0.0) / each.gpus + 1e-9)) if each.gpus else slots


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Keep the handlers of SIGINT and SIGTERM, which Ray replaces with its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
