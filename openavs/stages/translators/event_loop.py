"""An asyncio event loop in a thread of its own, for synchronous code that wants many requests in flight.

It works where the caller has a running loop already (a notebook, a web page), and connections outlive one call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines one call at a time or from several threads at once; ends with `stop` or with the process."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Waits for the result; an interrupt (Ctrl-C) cancels what is still going on."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # does nothing to one that is done

    @property
    def alive(self) -> bool:
        """False after `stop`, and in a forked child: threads do not survive a fork."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ends the thread; may be called twice."""
        if self.alive:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()
