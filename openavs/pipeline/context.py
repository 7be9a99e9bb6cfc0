"""What is worth telling about a clip's run besides its results: warnings, seconds by stage, and how far it is."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Told what is being done (by the pipeline: `listen`, `ask`, `look`), how many items of it are done and how many there
are."""


def _tell_nobody(stage: str, done: int, total: int) -> None:
    """The progress of whoever has not asked for it."""


@dataclass
class RunContext:
    """Collects them while a clip goes through the pipeline, and passes on the progress. `clip` names it in the log."""

    warnings: list[str] = field(default_factory=list)
    progress: Progress = _tell_nobody
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    clip: str = ""
    _inside: list[float] = field(default_factory=lambda: [0.0])  # per open stage, the seconds of stages within it

    def warn(self, sentence: str) -> None:
        """Keeps a sentence about this clip and logs it."""
        log.warning("%s", f"{self.clip}: {sentence}" if self.clip else sentence)
        self.warnings.append(sentence)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time spent inside to a stage, less what was spent in stages within it."""
        started = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[stage] += spent - self._inside.pop()
            self._inside[-1] += spent

    def timed_items(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items, the time it takes to make each of them added to a stage."""
        iterator = iter(items)
        while True:
            with self.timed(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
