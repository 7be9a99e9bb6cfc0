"""What a training says of itself: its figures every so many steps, and the time that it has taken."""

from __future__ import annotations

import logging
import time


class Teller:
    """Logs a stage of a training: `step 200: loss 1.234, IoU 0.567, 89 s`."""

    def __init__(self, log: logging.Logger, stage: str = "step", every: int = 100) -> None:
        self.log, self.stage, self.every, self.began = log, stage, every, time.monotonic()

    def __call__(self, step: int, **figures: float) -> None:
        """Tells the figures if this step (from 0) is the last of so many."""
        if (step + 1) % self.every == 0:
            said = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            self.log.info("%s %d: %s, %.0f s", self.stage, step + 1, said, time.monotonic() - self.began)
