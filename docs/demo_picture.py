"""Draws docs/demo.png: `python docs/demo_picture.py [--seed N]`, the README's picture of a real run of `tiny`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image as Pil

from openavs.benchmarks.world.casting import scene_of
from openavs.benchmarks.world.layouts import scene_to_clip
from openavs.overlay import paint_frame
from openavs.palettes import palette_of
from openavs.pipeline import Pipeline
from openavs.recipes import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("demo.png"))
    options = parser.parse_args()
    scene = scene_of("clip", "test", options.seed, 0, size=(288, 320), seconds=5).scene
    clip = scene_to_clip(scene, "demo")
    result = Pipeline.from_recipe(load_recipe("tiny"))(clip)
    palette = palette_of(result.frames)
    seen = [paint_frame(frame.image, result.frames[frame.index], palette) for frame in clip.frames(None)]
    gap = np.full((288, 8, 3), 255, dtype=np.uint8)
    strip = np.hstack([piece for picture in seen for piece in (picture, gap)][:-1])
    Pil.fromarray(strip).quantize(192).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
