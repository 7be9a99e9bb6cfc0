"""One clip through the pipeline, told step by step: a thread works, and the page shows the newest state of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from openavs.results.result import Result
from openavs.structures.types import Caption
from openavs.web.models import Heard, ModelCache
from openavs.web.settings import ServerConfig
from openavs.web.wishes import SegmentRequest, open_request

T = TypeVar("T")

STAGES = ("load", "caption", "translate", "localize")
MIN_UPDATE_INTERVAL = 0.15  # s between two states that are shown


@dataclass(frozen=True)
class InferenceProgress:
    """How far a run is: by stage `(done, total)` once it has begun, the best of what was heard, the result at its end.

    `reused` names the stages whose answers were all remembered from an earlier run.
    """

    steps: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    captions: tuple[Caption, ...] = ()
    reused: tuple[str, ...] = ()
    result: Result | None = None
    seconds: float = 0.0

    def at(self, stage: str, done: int, total: int) -> InferenceProgress:
        """With one stage further on."""
        return replace(self, steps={**self.steps, stage: (done, total)})


class Stopped(Exception):
    """Nobody wants the result any more."""


def run(
    wish: SegmentRequest, models: ModelCache, settings: ServerConfig, is_stopped: Callable[[], bool] = lambda: False
) -> Iterator[InferenceProgress]:
    """Segments a clip; yields the newest state now and then, the last one with the result.

    When `is_stopped` says so, or the caller ends early, the models stop at their next step; whoever comes next waits
    for that. The last state then has no result.

    Raises:
        InputError, ModelError: see `wishes.open_wish` and `Models.using`.
    """
    return stream_latest(lambda tell: _work(wish, models, settings, tell), is_stopped)


def _work(
    wish: SegmentRequest, models: ModelCache, settings: ServerConfig, tell: Callable[[InferenceProgress], None]
) -> None:
    started = time.monotonic()
    now = InferenceProgress().at("load", 0, 1)
    tell(now)

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal now
        now = now.at(stage, done, total)
        tell(now)

    def on_heard(heard: Heard) -> None:
        nonlocal now
        now = replace(now, captions=best_heard(heard))
        tell(now)

    with models.using(wish.recipe, wish.vocabulary, wish.threshold) as (pipe, cache):
        clip = open_request(wish, pipe.fps, settings)
        progress("load", 1, 1)
        pipe.on_heard = on_heard
        result = pipe(clip, progress)
    reused = tuple(
        stage
        for stage in ("captioner", "translator", "detector")
        if cache.counts[stage, "hits"] and not cache.counts[stage, "misses"]
    )
    named = Result.of(replace(result, source=wish.source.name), clip)
    tell(replace(now, reused=reused, result=named, seconds=time.monotonic() - started))


def best_heard(heard: Heard) -> tuple[Caption, ...]:
    """Of every text the surest time that it was heard, surest first."""
    best: dict[str, Caption] = {}
    for caption in (caption for own in heard for caption in own or ()):
        known = best.get(caption.text)
        if known is None or (caption.score or 0.0) > (known.score or 0.0):
            best[caption.text] = caption
    return tuple(sorted(best.values(), key=lambda caption: -(caption.score or 0.0)))


class _LatestValue(Generic[T]):
    """Holds the newest value that was told; older ones that nobody took are gone."""

    def __init__(self, is_stopped: Callable[[], bool]) -> None:
        self._asked_to_stop = is_stopped
        self.changed = threading.Condition()
        self.value: T | None = None
        self.is_new = self.is_over = self.is_left = False
        self.error: BaseException | None = None

    def tell(self, value: T) -> None:
        """Puts a value in; raises Stopped when nobody waits for one any more."""
        with self.changed:
            if self.is_left or self._asked_to_stop():
                raise Stopped
            self.value, self.is_new = value, True
            self.changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        with self.changed:
            self.error, self.is_over = error, True
            self.changed.notify_all()


def stream_latest(
    work: Callable[[Callable[[T], None]], None], is_stopped: Callable[[], bool] = lambda: False
) -> Iterator[T]:
    """Runs `work(tell)` in a thread and yields what it tells: always the last value, of the others the newest ones."""
    box: _LatestValue[T] = _LatestValue(is_stopped)

    def target() -> None:
        error: BaseException | None = None
        try:
            work(box.tell)
        except Stopped:
            pass
        except BaseException as problem:  # noqa: BLE001 - handed on: the consumer raises it
            error = problem
        box.end(error)

    threading.Thread(target=target, name="openavs-run", daemon=True).start()
    try:
        while True:
            with box.changed:
                box.changed.wait_for(lambda: box.is_new or box.is_over)
                value, had, over = box.value, box.is_new, box.is_over
                box.is_new = False
            if had:
                yield value  # type: ignore[misc]
            if over:
                break
            time.sleep(MIN_UPDATE_INTERVAL)
        if box.error is not None:
            raise box.error
    finally:  # the thread is not waited for: a server that closes this generator has others to answer
        with box.changed:
            box.is_left = True
