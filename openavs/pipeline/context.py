"""Run context of a clip: warnings, seconds by stage, and progress."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from openavs.structures.types import Event, Reasoning

logger = logging.getLogger(__name__)

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Progress callback: the step (the pipeline's are `caption`, `translate` and `localize`), items done, items in all."""


def no_progress(step: str, done: int, total: int) -> None:
    """No-op progress callback."""


@dataclass
class RunContext:
    """Collects warnings and timings of a clip and forwards its progress.

    Attributes:
        warnings: sentences about this clip.
        progress: the callback.
        seconds: seconds by stage, without those of the stages inside.
        clip: the clip's id, for the log.
        events: what sounds when, from a captioner that scores phrases over time.
        reasoning: the reasoner's question and answer.
    """

    warnings: list[str] = field(default_factory=list)
    progress: Progress = no_progress
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    clip: str = ""
    events: list[Event] = field(default_factory=list)
    reasoning: Reasoning | None = None
    _inside: list[float] = field(default_factory=lambda: [0.0])  # per open stage, the seconds of the stages inside it

    def warn(self, sentence: str) -> None:
        """Record a sentence about this clip and log it."""
        text = f"{self.clip}: {sentence}" if self.clip else sentence
        logger.warning("%s", text, extra={"sentence": sentence})
        self.warnings.append(sentence)

    def record(self, reasoning: Reasoning) -> None:
        """Record the reasoner's question and answer."""
        self.reasoning = reasoning

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage, less the time of stages within it."""
        started = time.perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[stage] += spent - self._inside.pop()
            self._inside[-1] += spent

    def timed_items(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, adding the time that each one takes to a stage."""
        iterator = iter(items)
        while True:
            with self.timed(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
