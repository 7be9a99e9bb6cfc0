"""Background writer: one thread with a bounded queue that writes results while the models work."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class BackgroundWriter(Generic[T]):
    """Calls `work(item)` in a thread, in order; a context manager whose exit waits for the queue.

    At most `depth` items wait; then `put` blocks. An exception of `work` stops it and is raised by the next `put` or by
    the exit. If the block itself raises, the waiting items are still written.
    """

    def __init__(self, work: Callable[[T], object], depth: int) -> None:
        self._work = work
        self._items: queue.Queue[list[T]] = queue.Queue(
            maxsize=depth
        )  # lists of one item; an empty list ends the thread
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
