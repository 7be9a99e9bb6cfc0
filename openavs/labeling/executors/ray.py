"""The engine of a Ray cluster: actors that take one shard after another, on whatever nodes there are.

Ray places processes and tells who died. What is done is said by the marks on the shared disk, as with every engine, and
what to do after a death by `Recovery`: actors are not restarted and calls not repeated by Ray, whose retries have no
end or lose rows. Each actor has one shard at most, and one call of `listen` is under way to each: that is all that ever
lies in the object store.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any

import openavs
from openavs.errors import InputError
from openavs.labeling.executors.base import ProgressListener
from openavs.labeling.executors.pool import POLL, WorkerHandle, WorkerPool
from openavs.labeling.executors.ray_cluster import WorkerResources, connected, plan_workers
from openavs.labeling.executors.ray_worker import RayWorker
from openavs.labeling.job import Job, ShardSpec
from openavs.labeling.worker import environment

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT = 5.0
"""Seconds in which idle workers are to give up their claims, before all are killed."""
SCHEDULING_TIMEOUT = 300.0
"""Seconds that the job waits for a first place on the cluster, or for a new one when all its nodes are gone."""


@dataclass
class RayExecutor:
    """Runs shards in actors.

    Args:
        workers: How many; by default one for each GPU, or one for each CPU but one.
        gpus: Share of a GPU for each worker; by default 0 where the cluster has none or the recipe wants none, else a
            whole one, or a half, a third ... where there are to be more workers than GPUs.
        address: Of the cluster; see `ray_cluster.connected`.
        patience: Seconds after which a worker that tells nothing of its shard is killed (None: never).
    """

    workers: int | None = None
    gpus: float | None = None
    address: str | None = None
    patience: float | None = None

    def run(self, job: Job, shards: Iterable[ShardSpec], watch: ProgressListener) -> None:
        """See `Engine.run`. Raises InputError where the cluster cannot be reached or has no room for the workers."""
        with connected(self.address) as ray:
            share = WorkerResources(float(job.threads), self._gpus(ray, job))
            workers = plan_workers(ray, share, self.workers)
            actors = _Actors(ray, share, job, workers, self.patience, shards, watch)
            try:
                actors.run()
            finally:
                actors.kill()

    def _gpus(self, ray: Any, job: Job) -> float:
        if self.gpus is not None:
            return self.gpus
        wanted = str(job.recipe.get("device", "auto")).partition(":")[0] in ("auto", "cuda")
        there = int(ray.cluster_resources().get("GPU", 0.0))
        return 1.0 / ceil((self.workers or 1) / there) if wanted and there else 0.0


@dataclass(eq=False)
class _Actor(WorkerHandle):
    """`news` is the call of `listen` that is under way; `here` says that Ray has placed it on a node."""

    handle: Any
    news: Any
    here: bool = False


class _Actors(WorkerPool[_Actor]):
    """Workers that are actors of a cluster."""

    logs = " and Ray's own logs"

    def __init__(self, ray: Any, share: WorkerResources, job: Job, size: int, *rest: Any) -> None:
        super().__init__(job, size, *rest)
        self.ray, self.share = ray, share
        self.placed = time.monotonic()  # when a worker last had a place

    def kill(self) -> None:
        idle = [actor.handle.leave.remote() for actor in self.members if actor.ready and actor.spec is None]
        if idle:
            self.ray.wait(idle, num_returns=len(idle), timeout=SHUTDOWN_TIMEOUT)
        for actor in self.members:
            self.ray.kill(actor.handle)
        self.members.clear()

    def _start(self) -> _Actor:
        # A worker without a GPU sees none: on a node that has some, all of them would take the first.
        variables = environment(self.job, None if self.share.gpus else "")
        remote = self.ray.remote(RayWorker).options(
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": variables},
        )
        handle = remote.remote(self.job, openavs.__version__, log.getEffectiveLevel())
        handle.load.remote()
        return _Actor(handle, handle.listen.remote(False))

    def _give(self, member: _Actor, spec: ShardSpec) -> None:
        member.handle.work.remote(spec)

    def _ask_to_stop(self, member: _Actor) -> None:
        """Nothing: the next `listen` tells it."""

    def _listen(self) -> None:
        by_news = {actor.news: actor for actor in self.members}
        heard, rest = self.ray.wait(list(by_news), num_returns=1, timeout=POLL)
        if heard and rest:  # and those that have something to tell besides
            heard += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for news in heard:
            self._read(by_news[news])
        self._look_for_room()

    def _read(self, actor: _Actor) -> None:
        try:
            events = self.ray.get(actor.news)
        except self.ray.exceptions.RayActorError as problem:
            log.debug("a worker is gone: %s", problem)
            self._mourn(actor, type(problem).__name__)
            return
        actor.news = actor.handle.listen.remote(self.stopped)
        for kind, value in events:
            if kind == "here":
                actor.here = True
                log.info("a worker is on %s", value)
            else:
                self._take(actor, kind, value)

    def _look_for_room(self) -> None:
        """Ends the job when no worker has had a place for too long."""
        if any(actor.here for actor in self.members):
            self.placed = time.monotonic()
        elif time.monotonic() - self.placed > SCHEDULING_TIMEOUT:
            raise InputError(
                f"the Ray cluster has had no room for a worker for {SCHEDULING_TIMEOUT:g} s (see `ray status`); "
                "add nodes, then run the same command again: finished clips are kept"
            )

    def _kill(self, member: _Actor) -> None:
        self.ray.kill(member.handle)  # its `news` fail when it is dead

    def _bury(self, member: _Actor) -> None:
        self.ray.kill(member.handle)  # one that could only not be reached must not come back
