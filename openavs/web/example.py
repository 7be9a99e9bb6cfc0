"""The clip of the one-click example: a scene of the synthetic world, rendered once."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from openavs.errors import InputError

NAME = "example.mp4"
SEED = 4


class ExampleClip:
    """Renders beside the server's start; whoever asks too early waits for it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._lock = threading.Lock()
        self._ended = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to render in a thread."""
        self._thread = threading.Thread(target=self._render, name="openavs-example", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Waits for what is being rendered, and nothing is from then on: the folder may go."""
        with self._lock:
            self._ended = True
        if self._thread is not None:
            self._thread.join()

    def clip(self) -> Path:
        """The video file, rendered now if it was not. InputError after the end."""
        with self._lock:
            if self._ended:
                raise InputError("the page is closed")
            if not self.path.is_file():
                from openavs.synthetic.datasets import write_clip
                from openavs.synthetic.scene_sampling import sample_scene

                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_clip(self.path, sample_scene("clip", "test", SEED, 0, size=(288, 384), seconds=6).scene)
            return self.path

    def _render(self) -> None:
        with suppress(InputError):  # it ended before this thread had its turn
            self.clip()
