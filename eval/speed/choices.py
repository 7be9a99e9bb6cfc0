"""What two options of a recipe gain on this machine: frames in batches, and compiled networks.

    python eval/speed/choices.py --json [--size small|reduced|real] [--frames 4] [--repeats 5] [--only OPTION]

Each is a ratio of CPU seconds of one thread without the option over those with it, on the same frames, in one process
and in turns; the median. Over 1: the option pays. Networks have random weights and are those of `peers.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from random_models import REAL, REDUCED, SMALL, save_models
from standard_load import BOXES, standard

from openavs.registry import Registry

SIZES = {size.name: size for size in (SMALL, REDUCED, REAL)}


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--size", choices=sorted(SIZES), default="small")
    options.add_argument("--frames", type=int, default=4)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--only", choices=("batch_size", "compile"), help="one of the two options")
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    size = SIZES[chosen.size]
    load = standard(size.picture, chosen.frames)
    height, width = size.picture
    boxes = [(width * i / 8, height / 4, width * (i + 2) / 8, height * 3 / 4) for i in range(len(load.phrases) * BOXES)]
    with tempfile.TemporaryDirectory() as folder:
        detector, segmenter = save_models(Path(folder), size, "sam", load.images[0])
        asked, given = [load.phrases] * chosen.frames, [boxes] * chosen.frames

        def detect(**how: Any) -> Callable[[], object]:
            made = build("detector", "grounding-dino", detector, how)
            return lambda: made.detect(load.images, asked)

        def segment(**how: Any) -> Callable[[], object]:
            made = build("segmenter", "sam", segmenter, how)
            return lambda: made.segment(load.images, given)

        found = {}
        for name, value in {"batch_size": chosen.frames, "compile": True}.items():
            if chosen.only in (None, name):
                for stage, work in {"detector": detect, "segmenter": segment}.items():
                    found[f"{stage}.{name}"] = ratio(work(), work(**{name: value}), chosen.repeats)
    print(json.dumps({"size": size.name, "ratio": found}, indent=None if chosen.json else 1))


def build(stage: str, use: str, model: Path, how: dict[str, Any]) -> Any:
    """A backend in float32 on the CPU."""
    return Registry(stage).build(use, {"model": str(model), **how}, {"device": "cpu", "dtype": "float32"})


def ratio(plain: Callable[[], object], option: Callable[[], object], repeats: int) -> float:
    """Of CPU seconds, in turns; the first pair warms up (and compiles)."""
    ratios = [seconds(plain) / seconds(option) for _ in range(repeats + 1)]
    return round(statistics.median(ratios[1:]), 3)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
