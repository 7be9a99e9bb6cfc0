"""The clip of the one-click example: a scene of the synthetic world, rendered once."""

from __future__ import annotations

import threading
from pathlib import Path

NAME = "example.mp4"
SEED = 4


class Example:
    """Renders beside the server's start; whoever asks too early waits for it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begins to render in a thread."""
        threading.Thread(target=self.clip, name="openavs-example", daemon=True).start()

    def clip(self) -> Path:
        """The video file, rendered now if it was not."""
        with self._lock:
            if not self.path.is_file():
                from openavs.benchmarks.world.casting import scene_of
                from openavs.benchmarks.world.layouts import write_clip

                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_clip(self.path, scene_of("clip", "test", SEED, 0, size=(288, 384), seconds=6).scene)
            return self.path
