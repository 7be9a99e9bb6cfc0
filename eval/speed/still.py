"""What is spared when pictures do not change, and what it costs to look whether they do.

    python eval/speed/still.py --json [--frames 8] [--repeats 5] [--size 1280x720]

- `ratio.static`: CPU seconds with every frame looked at over those with the recipe's default, on a video whose pictures
  repeat bit for bit; `ratio.moving` the same where none does: what the comparisons cost. Pairs of runs in one process,
  in turns, with the embedded models; medians. Larger networks only move the first up and the second towards 1.
- `compare_ms`: one comparison of two pictures of `--size` that are the same, differ everywhere, or differ by noise and
  are compared in cells, as with a tolerance.
- `change`: what `reuse.change` says, in grey levels, of one still scene, seen through a camera's noise (deviation in
  levels) and H.264, from frame to frame; and of the scene with a thing of a thousandth of its area that moved.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from openavs.config.recipe import load_recipe
from openavs.media import open_clip, write_video
from openavs.pipeline.dedup import FrameDeduplicator, max_cell_difference
from openavs.pipeline.pipeline import Pipeline
from openavs.structures.types import Clip, Frame, ImageArray
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng

NOISES = (0.0, 1.0, 2.0, 4.0)


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--frames", type=int, default=8)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--size", default="1280x720")
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    width, height = map(int, chosen.size.split("x"))
    found = {
        "ratio": {name: ratio(still, chosen) for name, still in (("static", True), ("moving", False))},
        "compare_ms": compare((height, width)),
        "change": changes((height, width)),
    }
    print(json.dumps(found, indent=None if chosen.json else 1))


def ratio(still: bool, options: argparse.Namespace) -> float:
    """Looking at every picture over looking at those that changed."""
    recipe = load_recipe("tiny")
    spares = Pipeline.from_recipe(recipe)
    stages = (spares.captioner, spares.translator, spares.detector, spares.segmenter)
    every = Pipeline(*stages, replace(spares.settings, max_diff=None))
    clip = scene(options.frames, still)
    ratios = []
    for _ in range(options.repeats + 1):
        one, two = seconds(every, clip), seconds(spares, clip)
        ratios.append(one / two)
    return round(statistics.median(ratios[1:]), 3)  # the first pair warms up


def scene(frames: int, still: bool) -> Clip:
    """A dog that barks all the time, in pictures that are decoded already."""
    planned = plan_scene([Role("dog", (True,) * frames)], scene_rng("test", 77, 4), frames)
    clip = scene_to_clip(planned, "scene")
    images = [frame.image for frame in clip.frames(None)]

    def source(wanted: frozenset[int] | None) -> Iterator[Frame]:
        for i, at in enumerate(clip.times):
            if wanted is None or i in wanted:
                yield Frame(i, at, images[0 if still else i].copy())

    return replace(clip, frames=source)


def seconds(pipe: Pipeline, clip: Clip) -> float:
    """CPU seconds of one clip."""
    started = time.process_time()
    pipe(clip)
    return time.process_time() - started


def compare(size: tuple[int, int]) -> dict[str, float]:
    """CPU milliseconds of one comparison, the fastest of some."""
    rng = np.random.default_rng(1)
    one = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    near = np.clip(one.astype(np.int16) + rng.integers(-1, 2, one.shape), 0, 255).astype(np.uint8)
    pairs: dict[str, tuple[ImageArray, ImageArray, float]] = {
        "same": (one, one.copy(), 0.0), "other": (one, one[::-1].copy(), 0.0), "in cells": (one, near, 2.0),
    }  # fmt: skip
    found = {}
    for name, (first, second, tolerance) in pairs.items():
        times = []
        for _ in range(7):
            frames = iter([Frame(0, 0.0, first), Frame(1, 1.0, second)])
            started = time.process_time()
            list(FrameDeduplicator(tolerance).share(frames))
            times.append(time.process_time() - started)
        found[name] = round(min(times) * 1e3, 2)
    return found


def changes(size: tuple[int, int]) -> dict[str, Any]:
    """The change from frame to frame of a still scene that was recorded and compressed, the largest of some."""
    rng = np.random.default_rng(2)
    small = rng.integers(40, 216, (size[0] // 40, size[1] // 40, 3)).astype(np.uint8)
    still = np.ascontiguousarray(small.repeat(40, axis=0).repeat(40, axis=1))
    moved = still.copy()
    edge = round((still.shape[0] * still.shape[1] / 1000) ** 0.5)
    moved[100 : 100 + edge, 200 : 200 + edge] = 255 - moved[100 : 100 + edge, 200 : 200 + edge]
    found: dict[str, Any] = {"a thing that moved": round(max_cell_difference(still, moved), 1)}
    for noise in NOISES:
        pictures = [np.clip(still + rng.normal(0, noise, still.shape), 0, 255).astype(np.uint8) for _ in range(8)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "still.mp4"
            write_video(path, pictures, fps=4)
            shown = [frame.image for frame in open_clip(path, fps=4).frames(None)]
        found[f"noise {noise:g}"] = round(max(max_cell_difference(shown[0], image) for image in shown[1:]), 2)
    return found


if __name__ == "__main__":
    main()
