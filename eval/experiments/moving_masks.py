"""Scores the masks of overlays between sampled frames, on clips of the synthetic world with true masks at the samples.

    python eval/experiments/moving_masks.py --clips 24 --json

Every object of a clip swings `--swing` times as far as usual; every second clip is of the layout `twins`, half of which
have a shaking camera. True masks are given at one frame a second, and the masks of all 25 frames a second are scored:

- still: those of the nearest sampled frame;
- moving: those of `visualization/moving_masks.py`.

IoU is the mean over frames of an object, then over objects; the mask of a sampled frame itself has IoU 1. With `--cost`
the CPU seconds for a video of 10 s of 1280 x 720 with two objects are measured, too, each the median of `--repeats`:

- decode, moving, paint: reading the small frames; their flow and the moved masks beside it; painting;
- overlay, encode: the whole overlay, and the same video without paint;
- both: the overlay and the plain video of the report in one pass, where that is encoded;
- copy: the plain video, where its streams are copied.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from openavs.media.clip import open_clip
from openavs.media.encode import write_video
from openavs.media.remux import copy_streams, write_overlay
from openavs.structures.masks import mask_to_rle, rle_to_mask
from openavs.structures.types import BoolMask, ClipResult, FrameResult, ImageArray, Segment
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Scene, sample_scene
from openavs.visualization.moving_masks import MovingMasks
from openavs.visualization.overlay import OverlayPainter, paint_frame

RATE = 25  # scored frames per second


def main() -> None:
    """Score the clips and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seed", type=int, default=2200)
    parser.add_argument("--swing", type=float, default=3.0, help="times the usual swing")
    parser.add_argument("--cost", action="store_true", help="measure CPU seconds, too")
    parser.add_argument("--repeats", type=int, default=3, help="of the measurement of CPU seconds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    ious: dict[str, list[float]] = {"still": [], "moving": []}
    for index in range(options.clips):
        for name, own in score(swinging_scene(options.seed, index, options.swing)).items():
            ious[name] += own
    figures: dict[str, float] = {name: float(np.mean(own)) for name, own in ious.items()}
    if options.cost:
        runs = [cost() for _ in range(options.repeats)]
        figures |= {f"{part}_s": statistics.median(run[part] for run in runs) for part in runs[0]}
    print(json.dumps(figures, indent=2) if options.json else figures)


def swinging_scene(seed: int, index: int, swing: float) -> Scene:
    """Return a scene whose objects swing further than usual, with a period of at least two seconds."""
    scene = sample_scene("twins" if index % 2 else "ms3", "test", seed, index).scene
    actors = []
    for actor in scene.actors:
        x, y, turn, period, phase = actor.motion
        actors.append(replace(actor, motion=(swing * x, swing * y, turn, max(period, 2.0), phase)))
    return replace(scene, actors=tuple(actors))


def true_masks(scene: Scene, at: float) -> dict[str, BoolMask]:
    """Return the visible pixels of every object, sounding or not."""
    owners = scene.picture(at)[1]
    masks = {f"object {i}": owners == i for i in range(1, len(scene.actors) + 1)}
    return {name: mask for name, mask in masks.items() if mask.any()}


def score(scene: Scene) -> dict[str, list[float]]:
    """Return the mean IoU of every object with still and with moving masks."""
    clip = scene_to_clip(scene, "clip", 0.5)
    frames = [FrameResult(i, t, segments=_segments(true_masks(scene, t))) for i, t in enumerate(clip.times)]
    timelines = {"still": MovingMasks(frames), "moving": MovingMasks(frames, clip)}
    ious: dict[tuple[str, str], list[float]] = {}
    for index in range(scene.seconds * RATE):
        truth = true_masks(scene, (index + 0.5) / RATE)
        for how, timeline in timelines.items():
            shown = timeline.at(index / RATE)
            found = {} if shown is None else {s.phrase: rle_to_mask(s.mask) for s in shown.segments}
            for name, mask in truth.items():
                own = found.get(name, np.zeros_like(mask))
                overlap = np.count_nonzero(own & mask) / np.count_nonzero(own | mask)
                ious.setdefault((how, name), []).append(overlap)
    return {how: [float(np.mean(own)) for (name, _), own in ious.items() if name == how] for how in timelines}


def cost() -> dict[str, float]:
    """Return the CPU seconds of each part."""

    def images() -> Iterator[ImageArray]:
        blocks = np.random.default_rng(0).integers(0, 255, (90, 160, 3)).astype(np.uint8)
        large = np.asarray(cv2.resize(blocks, (1600, 900)), dtype=np.uint8)
        for i in range(10 * RATE):
            left = round(100 + 90 * np.sin(i / 20))
            yield np.ascontiguousarray(large[90:810, left : left + 1280])

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, images(), RATE)
        clip = open_clip(path)
        y, x = np.mgrid[:720, :1280]
        ellipses = {f"object {c}": ((x - c) / 200) ** 2 + ((y - 360) / 250) ** 2 < 1 for c in (300, 800)}
        frames = [FrameResult(i, t, segments=_segments(ellipses)) for i, t in enumerate(clip.times)]
        dense = clip.dense_frames
        assert dense is not None
        result = ClipResult("clip", clip.size, tuple(frames))
        image = np.zeros((720, 1280, 3), dtype=np.uint8)
        out, plain = Path(folder) / "overlay.mp4", Path(folder) / "plain.mp4"
        seconds: dict[str, float] = {}
        shown: list[FrameResult | None] = []
        moving = MovingMasks(frames, clip)
        parts: dict[str, Callable[[], object]] = {
            "decode": lambda: deque(dense(RATE, 256), maxlen=0),
            "moving": lambda: shown.extend(moving.at(i / RATE) for i in range(10 * RATE)),
            "paint": lambda: [paint_frame(image, frame) for frame in shown if frame is not None],
            "overlay": lambda: write_overlay(out, clip, OverlayPainter(result, clip=clip)),
            "encode": lambda: write_overlay(out, clip, lambda time, image: image),
            "both": lambda: write_overlay(out, clip, OverlayPainter(result, clip=clip), plain=plain),
            "copy": lambda: copy_streams(plain, clip),
        }
        for name, run in parts.items():
            start = time.process_time()
            run()
            seconds[name] = time.process_time() - start
    seconds["moving"] -= seconds["decode"]
    return seconds


def _segments(masks: dict[str, BoolMask]) -> tuple[Segment, ...]:
    return tuple(Segment(mask_to_rle(mask), (0.0, 0.0, 1.0, 1.0), name, 1.0) for name, mask in masks.items())


if __name__ == "__main__":
    main()
