"""How every training script begins: its options, one thread, its seed, and a log on the screen."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch


def begin(about: str | None, **defaults: float | str) -> argparse.Namespace:
    """Reads the options of the command line: `--out`, and one with each default's name and type; `seed` among them."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the model")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    return options
