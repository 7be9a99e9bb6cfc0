"""Measures the gain of options on this machine: batches, compiled networks, and the deduplication of frames.

    python eval/bench/options.py --json [--size small|reduced|real] [--frames 4] [--repeats 5] [--only OPTION...]

- `ratio.STAGE.batch_size`, `ratio.STAGE.compile`: CPU seconds without the option over those with it, on the same frames
  and networks with random weights. Over 1: the option pays.
- `ratio.frame_dedup.static`: CPU seconds with every frame processed over those with the default of the recipes, on a
  video whose frames are all the same, with the embedded models; `ratio.frame_dedup.moving`: the same on a moving scene,
  that is, the cost of the comparisons. Larger networks only raise the first and move the second towards 1.
- `compare_ms`: CPU milliseconds of one comparison of two images of 1280 x 720 that are the same, differ everywhere, or
  differ by noise and are compared in cells, as with a tolerance.
- `change`: the result of `max_cell_difference`, in gray levels, from frame to frame of a still scene with camera noise
  (its standard deviation in gray levels) after H.264, and of the scene with a moved object of a thousandth of its area.

Ratios are medians over alternating runs on one thread in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from harness import argument_parser, print_figures, ratios, time_alternately, timed, use_one_thread, working_folder

use_one_thread()

import numpy as np
import torch
from workloads import BOXES, SIZES, Size, in_memory, save_models, standard, tiny_pipeline

from openavs.media.clip import open_clip
from openavs.media.encode import write_video
from openavs.pipeline.frames import FrameDeduplicator, max_cell_difference
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import Registry
from openavs.structures.types import Clip, Frame
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng

OPTIONS = ("batch_size", "compile", "frame_dedup")
IMAGE = (720, 1280)
NOISES = (0.0, 1.0, 2.0, 4.0)
DEDUP_FRAMES = 8


def main() -> None:
    """Measure and print."""
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument(
        "--size", choices=SIZES, default="small", help="of networks and frames, for batches and compile"
    )
    parser.add_argument("--frames", type=int, default=4, help="per batch")
    parser.add_argument("--only", nargs="+", choices=OPTIONS, default=OPTIONS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    values = {
        name: value for name, value in (("batch_size", options.frames), ("compile", True)) if name in options.only
    }
    figures: dict[str, Any] = {"size": options.size, "ratio": {}}
    if values:
        figures["ratio"] |= network_ratios(SIZES[options.size], options.frames, values, options.repeats)
    if "frame_dedup" in options.only:
        for name, still in (("static", True), ("moving", False)):
            figures["ratio"][f"frame_dedup.{name}"] = dedup_ratio(still, options.repeats)
        figures |= {"compare_ms": comparison_times(), "change": recorded_changes()}
    print_figures(figures, options.json)


def ratio(plain: Callable[[], object], option: Callable[[], object], repeats: int) -> float:
    """Return the ratio of CPU seconds of two variants; the first pair warms up (and compiles)."""
    seconds = time_alternately({"plain": plain, "option": option}, repeats + 1)
    return round(median(ratios(seconds["plain"][1:], seconds["option"][1:])), 3)


def network_ratios(size: Size, frames: int, values: dict[str, Any], repeats: int) -> dict[str, float]:
    """Compare detector and segmenter without and with each option."""
    workload = standard(size.image, frames)
    height, width = size.image
    count = len(workload.phrases) * BOXES
    boxes = [(width * i / 8, height / 4, width * (i + 2) / 8, height * 3 / 4) for i in range(count)]
    found = {}
    with working_folder() as folder:
        detector, segmenter = save_models(folder, size, "sam", workload.images[0])

        def detect(**option: Any) -> Callable[[], object]:
            backend = build("detector", "grounding-dino", detector, option)
            return lambda: backend.detect(workload.images, [workload.phrases] * frames)

        def segment(**option: Any) -> Callable[[], object]:
            backend = build("segmenter", "sam", segmenter, option)
            return lambda: backend.segment(workload.images, [boxes] * frames)

        for name, value in values.items():
            for stage, work in {"detector": detect, "segmenter": segment}.items():
                found[f"{stage}.{name}"] = ratio(work(), work(**{name: value}), repeats)
    return found


def build(stage: str, use: str, model: Path, option: dict[str, Any]) -> Any:
    """Build a backend in float32 on the CPU."""
    return Registry(stage).build(use, {"model": str(model), **option}, {"device": "cpu", "dtype": "float32"})


# ------------------------------------------------------------------------------------------------------- frame_dedup


def dedup_ratio(still: bool, repeats: int) -> float:
    """Compare processing every frame with processing those that changed."""
    default = tiny_pipeline()
    stages = (default.captioner, default.translator, default.detector, default.segmenter)
    every = Pipeline(*stages, replace(default.settings, max_diff=None))
    clip = barking_dog(still)
    return ratio(lambda: every(clip), lambda: default(clip), repeats)


def barking_dog(still: bool) -> Clip:
    """Return a clip of a dog that barks throughout, its frames in memory."""
    scene = plan_scene([Role("dog", (True,) * DEDUP_FRAMES)], scene_rng("test", 77, 4), DEDUP_FRAMES)
    clip = in_memory(scene_to_clip(scene, "scene"))
    first = next(iter(clip.frames(None))).image

    def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
        for frame in clip.frames(wanted):
            yield replace(frame, image=(first if still else frame.image).copy())

    return replace(clip, frames=frames)


def comparison_times() -> dict[str, float]:
    """Return CPU milliseconds of one comparison, the fastest of several."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*IMAGE, 3), dtype=np.uint8)
    noisy = np.clip(image.astype(np.int16) + rng.integers(-1, 2, image.shape), 0, 255).astype(np.uint8)
    pairs = {"same": (image.copy(), 0.0), "other": (image[::-1].copy(), 0.0), "in cells": (noisy, 2.0)}
    found = {}
    for name, (second, max_diff) in pairs.items():
        frames = [Frame(0, 0.0, image), Frame(1, 1.0, second)]
        found[name] = round(min(timed(partial(deduplicate, frames, max_diff)).cpu for _ in range(7)) * 1e3, 2)
    return found


def deduplicate(frames: list[Frame], max_diff: float) -> None:
    """Deduplicate frames."""
    list(FrameDeduplicator(max_diff).share(frames))


def recorded_changes() -> dict[str, float]:
    """Return the largest change between the frames of a still scene that was recorded and compressed."""
    rng = np.random.default_rng(2)
    cells = rng.integers(40, 216, (IMAGE[0] // 40, IMAGE[1] // 40, 3)).astype(np.uint8)
    still = np.ascontiguousarray(cells.repeat(40, axis=0).repeat(40, axis=1))
    moved = still.copy()
    edge = round((IMAGE[0] * IMAGE[1] / 1000) ** 0.5)
    moved[100 : 100 + edge, 200 : 200 + edge] = 255 - moved[100 : 100 + edge, 200 : 200 + edge]
    found = {"moved object": round(max_cell_difference(still, moved), 1)}
    with working_folder() as folder:
        for noise in NOISES:
            images = [np.clip(still + rng.normal(0, noise, still.shape), 0, 255).astype(np.uint8) for _ in range(8)]
            path = folder / f"{noise:g}.mp4"
            write_video(path, images, fps=4)
            decoded = [frame.image for frame in open_clip(path, fps=4).frames(None)]
            found[f"noise {noise:g}"] = round(max(max_cell_difference(decoded[0], image) for image in decoded[1:]), 2)
    return found


if __name__ == "__main__":
    main()
