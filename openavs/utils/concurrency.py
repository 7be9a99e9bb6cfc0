"""Prefetching, batching and background writing of streams, with bounded memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


def prefetch(source: Iterable[T], depth: int = 2) -> Generator[T]:
    """Yield the items of `source`, produced ahead in a thread, at most `depth` waiting.

    An exception of the source is raised in the place of its item. If the consumer stops early, the thread stops at
    its next item and closes the source.
    """
    items: queue.Queue[tuple[str, object]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(kind: str, value: object) -> bool:
        while not stopped.is_set():
            try:
                items.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    iterator = iter(source)

    def produce() -> None:
        try:
            for item in iterator:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # noqa: BLE001 - raised in the consumer
            put("error", error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=produce, name="openavs-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = items.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


def batched(source: Iterable[T], count: int, weight: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Yield lists of up to `count` items whose weights add up to at most `limit`; a heavier item goes alone.

    A full list is yielded at once, without waiting for the next item.
    """
    batch: list[T] = []
    total = 0
    for item in source:
        if batch and total + weight(item) > limit:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += weight(item)
        if len(batch) == count:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


class BackgroundWriter(Generic[T]):
    """Calls `work(item)` in a thread, in order; a context manager whose exit waits for the queue.

    At most `depth` items wait; then `put` blocks. An exception of `work` stops it and is raised by the next `put` or by
    the exit. If the block itself raises, the waiting items are still written.
    """

    def __init__(self, work: Callable[[T], object], depth: int) -> None:
        self._work = work
        # Lists of one item; an empty list ends the thread.
        self._items: queue.Queue[list[T]] = queue.Queue(maxsize=depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="openavs-writer", daemon=True)

    def put(self, item: T) -> None:
        """Queue an item."""
        self._raise()
        self._items.put([item])

    def __enter__(self) -> BackgroundWriter[T]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._items.put([])
        self._thread.join()
        if error is None:
            self._raise()

    def _run(self) -> None:
        while items := self._items.get():
            if self._error is None:
                try:
                    self._work(items[0])
                except BaseException as error:  # noqa: BLE001 - raised again by `put` or the exit
                    self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
