"""The engine of a Ray cluster: actors that take one shard after another, on whatever nodes there are.

Ray places processes and tells who died. What is done is said by the marks on the shared disk, as with every engine, and
what to do after a death by `Recovery`: actors are not restarted and calls not repeated by Ray, whose retries have no
end or lose rows. Each actor has one shard at most, and one call of `listen` is under way to each: that is all that ever
lies in the object store.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import openavs
from openavs.jobs.engine import ClipDone, Watcher
from openavs.jobs.job import Job, ShardSpec
from openavs.jobs.ray_cluster import Share, connected, plan_workers
from openavs.jobs.ray_worker import RayWorker
from openavs.jobs.recovery import Recovery
from openavs.jobs.worker import environment
from openavs.types import InputError, ModelError

log = logging.getLogger(__name__)

POLL = 0.2
"""Seconds after which the driver looks whether it is to stop."""
DEAD_STARTS = 3
"""So often in a row workers may die while they load their models."""
LEAVING = 5.0
"""Seconds in which idle workers are to give up their claims, before all are killed."""
NO_ROOM = 300.0
"""Seconds that the job waits for a first place on the cluster, or for a new one when all its nodes are gone."""


@dataclass
class RayEngine:
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

    def run(self, job: Job, shards: Iterable[ShardSpec], watch: Watcher) -> None:
        """See `Engine.run`. Raises InputError where the cluster cannot be reached or has no room for the workers."""
        with connected(self.address) as ray:
            share = Share(float(job.threads), self._gpus(ray, job))
            workers = plan_workers(ray, share, self.workers)
            pool = _Pool(ray, job, share, workers, self.patience, iter(shards), watch)
            try:
                pool.run()
            finally:
                pool.kill()

    def _gpus(self, ray: Any, job: Job) -> float:
        if self.gpus is not None:
            return self.gpus
        wanted = str(job.recipe.get("device", "auto")).partition(":")[0] in ("auto", "cuda")
        there = int(ray.cluster_resources().get("GPU", 0.0))
        return 1.0 / ceil((self.workers or 1) / there) if wanted and there else 0.0


@dataclass(eq=False)
class _Actor:
    """A worker as the driver sees it. `news` is the call of `listen` that is under way."""

    handle: Any
    news: Any
    here: bool = False
    ready: bool = False
    spec: ShardSpec | None = None
    heard: float = field(default_factory=time.monotonic)


class _Pool:
    """The workers of one run, seen from the driver."""

    def __init__(
        self,
        ray: Any,
        job: Job,
        share: Share,
        workers: int,
        patience: float | None,
        shards: Iterator[ShardSpec],
        watch: Watcher,
    ) -> None:
        self.ray, self.job, self.share, self.size, self.patience = ray, job, share, workers, patience
        self.watch = watch
        self.recovery = Recovery(job)
        self.actors: list[_Actor] = []
        self.shards = shards
        self.waiting: deque[ShardSpec] = deque()  # the next of them, after those that go on
        self.dead_starts = 0
        self.stopped = False
        self.placed = time.monotonic()  # when a worker last had a place

    def run(self) -> None:
        """Until nothing is waiting and nobody is at work."""
        while True:
            if not self.stopped and self.watch.stopping():
                self._stop()
            if not self.stopped:
                self._fill()
            if not any(actor.spec for actor in self.actors) and (self.stopped or not self._waiting()):
                return
            self._listen()
            self._look_after()

    def kill(self) -> None:
        """Ends all workers at once; nothing is lost by it but the clips they were at."""
        idle = [actor.handle.leave.remote() for actor in self.actors if actor.ready and actor.spec is None]
        if idle:
            self.ray.wait(idle, num_returns=len(idle), timeout=LEAVING)
        for actor in self.actors:
            self.ray.kill(actor.handle)
        self.actors.clear()

    # ------------------------------------------------------------------------------------------- giving out work

    def _waiting(self, count: int = 1) -> bool:
        """Whether at least so many shards are to be given out; no more are looked at."""
        while len(self.waiting) < count and (following := next(self.shards, None)) is not None:
            self.waiting.append(following)
        return len(self.waiting) >= count

    def _fill(self) -> None:
        """Gives shards to workers without one, and starts workers while there are more shards than idle ones."""
        for actor in self.actors:
            if actor.ready and actor.spec is None and self._waiting():
                actor.spec, actor.heard = self.waiting.popleft(), time.monotonic()
                actor.handle.work.remote(actor.spec)
        idle = sum(actor.spec is None for actor in self.actors)
        while len(self.actors) < self.size and self._waiting(idle + 1):
            self.actors.append(self._start())
            idle += 1

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

    def _stop(self) -> None:
        """Workers end with the clip they are at, which the next `listen` tells them; idle ones end now."""
        self.stopped = True
        for actor in [actor for actor in self.actors if actor.spec is None]:
            self._bury(actor)

    # ------------------------------------------------------------------------------------------- what they answer

    def _listen(self) -> None:
        by_news = {actor.news: actor for actor in self.actors}
        heard, rest = self.ray.wait(list(by_news), num_returns=1, timeout=POLL)
        if heard and rest:  # and those that have something to tell besides
            heard += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for news in heard:
            self._read(by_news[news])

    def _read(self, actor: _Actor) -> None:
        try:
            events = self.ray.get(actor.news)
        except self.ray.exceptions.RayActorError as problem:
            log.debug("a worker is gone: %s", problem)
            self._mourn(actor, type(problem).__name__)
            return
        actor.news = actor.handle.listen.remote(self.stopped)
        for kind, value in events:
            actor.heard = time.monotonic()
            self._take(actor, kind, value)

    def _take(self, actor: _Actor, kind: str, value: Any) -> None:
        if kind == "here":
            actor.here = True
            log.info("a worker is on %s", value)
        elif kind == "ready":
            actor.ready, self.dead_starts = True, 0
            self.watch.ready(value)
        elif kind == "clip":
            assert isinstance(value, ClipDone)
            self.watch.clip(value)
        elif kind == "fault":
            raise value
        else:
            spec, actor.spec = actor.spec, None
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

    def _mourn(self, actor: _Actor, how: str) -> None:
        """A worker or its node has died: the shard goes to another, by what `Recovery` says."""
        self._bury(actor)
        if self.stopped:
            return
        self.watch.died(actor.spec, how)
        if not actor.ready:
            self.dead_starts += 1
            if self.dead_starts >= DEAD_STARTS:
                raise ModelError(
                    f"workers die while they load the models ({how}), which is often for want of memory; "
                    f"use fewer --workers, and see {self.job.out / 'log'} and Ray's own logs"
                )
        if actor.spec is not None:
            self._follow(actor.spec, died=True)

    def _bury(self, actor: _Actor) -> None:
        self.ray.kill(actor.handle)  # one that could only not be reached must not come back
        self.actors.remove(actor)

    def _look_after(self) -> None:
        now = time.monotonic()
        for actor in self.actors:
            if self.patience is not None and actor.spec is not None and now - actor.heard > self.patience:
                log.warning("a worker has said nothing for %g s and is killed", self.patience)
                actor.heard = now
                self.ray.kill(actor.handle)  # its `news` fail when it is dead
        if any(actor.here for actor in self.actors):
            self.placed = now
        elif now - self.placed > NO_ROOM:
            raise InputError(
                f"the Ray cluster has had no room for a worker for {NO_ROOM:g} s (see `ray status`); add nodes, then "
                "run the same again: what is done stays"
            )
