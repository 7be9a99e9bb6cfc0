"""The executor of this process: no worker is started, and the caller may bring its own pipeline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from openavs.caching.build import torch_threads
from openavs.caching.store import StageCache
from openavs.jobs.executors.base import ProgressListener
from openavs.jobs.job import ClipFinished, Job, ShardSpec
from openavs.jobs.sample import Sample
from openavs.jobs.shard import ClipLoop, LoopListener
from openavs.jobs.worker import CacheCounter, build, models_of
from openavs.structures.types import Clip

Built = tuple[Any, StageCache | None]
"""A pipeline (or one of its methods, or a function of a clip) and its stage cache."""


@dataclass
class InlineExecutor:
    """Runs shards in this process, one clip after the other.

    Attributes:
        build: Builds the pipeline, when there is a shard to run; by default as a worker does.
        wrap: Returns the function of a clip that is called instead of the pipeline; for progress of stages.
        open_clip: Opens the clip of a sample; by default its files are.
    """

    build: Callable[[], Built] | None = None
    wrap: Callable[[Any], Callable[[Clip], Any]] | None = None
    open_clip: Callable[[Sample], Clip] | None = None

    def run(self, job: Job, shards: Iterable[ShardSpec], listener: ProgressListener) -> None:
        """See `Executor.run`. KeyboardInterrupt ends it; the clip under way is run again by the next run."""
        predict, cache = self.build() if self.build is not None else build(job)
        listener.ready(models_of(predict))
        events = _Events(listener, CacheCounter(cache))
        call = None if self.wrap is None else self.wrap(predict)
        with torch_threads(job.threads):
            ClipLoop(job, predict, events, events.stopping, self.open_clip, call).run(shards)


class _Events(LoopListener):
    """Passes events on from the threads of the loop, one at a time."""

    def __init__(self, listener: ProgressListener, cached: CacheCounter) -> None:
        self._listener, self._cached = listener, cached
        self._lock = threading.Lock()

    def clip(self, done: ClipFinished) -> None:
        with self._lock:
            self._listener.clip(replace(done, cached=self._cached()))

    def completed(self, shard: int) -> None:
        with self._lock:
            self._listener.completed(shard)

    def busy(self, spec: ShardSpec) -> None:
        with self._lock:
            self._listener.busy(spec)

    def stopping(self) -> bool:
        """Return whether to stop."""
        with self._lock:
            return self._listener.stopping()
