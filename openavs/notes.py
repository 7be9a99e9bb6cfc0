"""What is worth telling about a clip's run besides its results: warnings, and seconds by stage."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Notes:
    """Collects them while a clip goes through the pipeline."""

    warnings: list[str] = field(default_factory=list)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _inside: list[float] = field(default_factory=lambda: [0.0])  # per open stage, the seconds of stages within it

    def warn(self, sentence: str) -> None:
        """Keeps a sentence about this clip and logs it."""
        log.warning("%s", sentence)
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
