"""Work that is handed to one thread through a bounded queue: the writing of results beside the models."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class BackgroundWriter(Generic[T]):
    """Calls `work(item)` in a thread, in order; use it in a `with` block, whose end waits for what is under way.

    At most `depth` items wait; `put` blocks then. An exception of the work ends it, and is raised by the next `put` or
    by the end of the block. When the block ends by an exception of its own, what waits is still done.
    """

    def __init__(self, work: Callable[[T], object], depth: int) -> None:
        self._work = work
        self._items: queue.Queue[list[T]] = queue.Queue(maxsize=depth)  # a list of one; empty: the end
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="openavs-writer", daemon=True)

    def put(self, item: T) -> None:
        """Hands an item over."""
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
                except BaseException as error:  # noqa: BLE001 - raised where the items come from
                    self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
