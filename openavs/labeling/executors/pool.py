"""The workers of one run as the driver sees them: who has which shard, and what follows when one answers or dies.

Engines differ in how a worker is started, spoken to and killed; all else is here.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from openavs.errors import ModelError
from openavs.labeling.executors.base import ClipFinished, ProgressListener
from openavs.labeling.job import Job, ShardSpec
from openavs.labeling.recovery import Recovery

log = logging.getLogger(__name__)

POLL = 0.2
"""Seconds after which the driver looks whether it is to stop."""
MAX_FAILED_STARTS = 3
"""So often in a row workers may die while they load their models."""


@dataclass(eq=False)
class WorkerHandle:
    """A worker: whether its models are loaded, the shard it has, and when it last told something."""

    ready: bool = field(default=False, init=False)
    spec: ShardSpec | None = field(default=None, init=False)
    heard: float = field(default_factory=time.monotonic, init=False)


M = TypeVar("M", bound=WorkerHandle)


class WorkerPool(ABC, Generic[M]):
    """At most `size` workers and the shards they are to work off; shards are taken from `shards` as they are needed.

    One that tells nothing for `patience` seconds while it has a shard is killed and counts as dead (None: never).
    """

    logs: ClassVar[str] = ""
    """Where else than in `OUT/log` a death may be explained."""

    def __init__(
        self, job: Job, size: int, patience: float | None, shards: Iterable[ShardSpec], watch: ProgressListener
    ) -> None:
        self.job, self.size, self.patience, self.watch = job, size, patience, watch
        self.recovery = Recovery(job)
        self.members: list[M] = []
        self.shards = iter(shards)
        self.waiting: deque[ShardSpec] = deque()  # the next of them, after those that go on
        self.dead_starts = 0
        self.stopped = False

    def run(self) -> None:
        """Until nothing is waiting and nobody is at work."""
        while True:
            if not self.stopped and self.watch.stopping():
                self._stop()
            if not self.stopped:
                self._fill()
            if not any(member.spec for member in self.members) and (self.stopped or not self._waiting()):
                return
            self._listen()
            self._kill_the_silent()

    # ------------------------------------------------------------------------------------------- what engines do

    @abstractmethod
    def kill(self) -> None:
        """Ends all workers at once; nothing is lost by it but the clips they were at."""

    @abstractmethod
    def _start(self) -> M:
        """Starts a worker, which begins by loading the models."""

    @abstractmethod
    def _give(self, member: M, spec: ShardSpec) -> None:
        """Hands a shard to a worker."""

    @abstractmethod
    def _ask_to_stop(self, member: M) -> None:
        """Has a worker end with the clip it is at."""

    @abstractmethod
    def _listen(self) -> None:
        """Waits up to `POLL` seconds for news; calls `_take` for what was told and `_mourn` for who has died."""

    @abstractmethod
    def _kill(self, member: M) -> None:
        """Kills a worker, which `_listen` notices."""

    @abstractmethod
    def _bury(self, member: M) -> None:
        """Ends a worker for good and frees what it held."""

    # ------------------------------------------------------------------------------------------- giving out work

    def _waiting(self, count: int = 1) -> bool:
        """Whether at least so many shards are to be given out; no more are looked at."""
        while len(self.waiting) < count and (following := next(self.shards, None)) is not None:
            self.waiting.append(following)
        return len(self.waiting) >= count

    def _fill(self) -> None:
        """Gives shards to workers without one, and starts workers while there are more shards than idle ones."""
        for member in self.members:
            if member.ready and member.spec is None and self._waiting():
                member.spec, member.heard = self.waiting.popleft(), time.monotonic()
                self._give(member, member.spec)
        idle = sum(member.spec is None for member in self.members)
        while len(self.members) < self.size and self._waiting(idle + 1):
            self.members.append(self._start())
            idle += 1

    def _stop(self) -> None:
        """Workers end with the clip they are at; those that have nothing to do are ended now."""
        self.stopped = True
        for member in list(self.members):
            if member.spec is None:
                self._remove(member)
            else:
                self._ask_to_stop(member)

    # ------------------------------------------------------------------------------------------- what they answer

    def _take(self, member: M, kind: str, value: Any) -> None:
        """One thing that a worker told: `ready` (models), `clip` (ClipDone), `done`, `busy`, `fault` (an exception)."""
        member.heard = time.monotonic()
        if kind == "ready":
            member.ready, self.dead_starts = True, 0
            self.watch.ready(value)
        elif kind == "clip":
            assert isinstance(value, ClipFinished)
            self.watch.clip(value)
        elif kind == "fault":
            raise value
        else:
            spec, member.spec = member.spec, None
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

    def _mourn(self, member: M, how: str) -> None:
        """A worker has died: its shard goes to another, by what `Recovery` says."""
        self._remove(member)
        if self.stopped:
            return
        self.watch.died(member.spec, how)
        if not member.ready:
            self.dead_starts += 1
            if self.dead_starts >= MAX_FAILED_STARTS:
                raise ModelError(
                    f"workers die while they load the models ({how}), which is often for want of memory; "
                    f"use fewer --workers, and see {self.job.out / 'log'}{self.logs}"
                )
        if member.spec is not None:
            self._follow(member.spec, died=True)

    def _remove(self, member: M) -> None:
        self.members.remove(member)
        self._bury(member)

    def _kill_the_silent(self) -> None:
        now = time.monotonic()
        for member in self.members:
            if self.patience is not None and member.spec is not None and now - member.heard > self.patience:
                log.warning("a worker has said nothing for %g s and is killed", self.patience)
                member.heard = now
                self._kill(member)
