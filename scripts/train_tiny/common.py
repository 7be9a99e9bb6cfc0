"""Command line, logging and saving of the training scripts."""

from __future__ import annotations

import argparse
import copy
import logging
import time
from pathlib import Path
from typing import Any

import torch


def parse_arguments(description: str | None, **defaults: float | str) -> argparse.Namespace:
    """Parse the command line and set up logging, one thread and the seed.

    Args:
        description: the help text.
        **defaults: defaults of the options in addition to `--out`, whose types they determine; `seed` is required.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the model")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    return arguments


class StepLogger:
    """Logs figures of a training stage at an interval: `step 200: loss 1.234, IoU 0.567, 89 s`."""

    def __init__(self, logger: logging.Logger, stage: str = "step", every: int = 100) -> None:
        self.logger, self.stage, self.every, self.started = logger, stage, every, time.monotonic()

    def __call__(self, step: int, **figures: float) -> None:
        """Log the figures of a step (from 0) if it is the last of an interval."""
        if (step + 1) % self.every == 0:
            text = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            self.logger.info("%s %d: %s, %.0f s", self.stage, step + 1, text, time.monotonic() - self.started)


def save_half(model: Any, folder: Path) -> None:
    """Save a float16 copy, which halves the package without a relevant effect on outputs.

    The adapters load it in the precision of their device, float32 on a CPU.
    """
    copy.deepcopy(model).half().save_pretrained(folder)
