"""Scores a recipe on a tree in AVSBench's S4 layout and prints captions, prompts and segments of every clip.

    python examples/edge/score_s4.py ROOT/s4_data --pipeline examples/edge/edge.yaml [key=value ...]

ROOT/s4_data has `visual_frames`, `audio_wav` and `gt_masks`, each with `<split>/<category>/<clip>`. J and F are
those of `openavs.evaluation.metrics.metrics`: `fixed` over frames, `official` as in the published script.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from openavs.config.recipe import load_recipe
from openavs.evaluation.metrics.metrics import BinaryMetrics
from openavs.media.clip import open_clip
from openavs.pipeline.pipeline import Pipeline
from openavs.structures.masks import segments_to_mask
from openavs.structures.types import BoolMask, Clip, ClipResult
from openavs.visualization.overlay import paint_frame


def clips(root: Path, split: str) -> Iterator[tuple[Clip, BoolMask]]:
    """Yield each clip of the split with its truth `[T, H, W]`; the n-th mask belongs to the n-th frame."""
    for folder in sorted((root / "visual_frames" / split).glob("*/*")):
        place = folder.relative_to(root / "visual_frames")
        sound = (root / "audio_wav" / place).parent / f"{place.name}.wav"
        masks = sorted((root / "gt_masks" / place).glob("*.png"), key=lambda path: int(path.stem.rpartition("_")[2]))
        truth = np.stack([np.asarray(Image.open(path).convert("L")) > 0 for path in masks])
        yield open_clip(folder, audio=sound), truth


def summary(result: ClipResult) -> str:
    """Return three lines: captions with their best score, prompts and segments with their number of frames."""
    captions: dict[str, float] = {}
    for caption in (caption for frame in result.frames for caption in frame.captions):
        captions[caption.text] = max(captions.get(caption.text, 0.0), caption.score or 0.0)
    prompts = Counter(prompt.phrase for frame in result.frames for prompt in frame.prompts)
    segments = Counter(phrase for frame in result.frames for phrase in {segment.phrase for segment in frame.segments})
    best = sorted(captions.items(), key=lambda item: -item[1])[:6]
    return "\n".join(
        f"  {name:<10}{', '.join(items) or '-'}"
        for name, items in (
            ("captions", [f"{label} {score:.2f}" for label, score in best]),
            ("prompts", [f"{phrase} x{count}" for phrase, count in prompts.most_common()]),
            ("segments", [f"{phrase} x{count}" for phrase, count in segments.most_common()]),
        )
    )


def predicted(result: ClipResult) -> BoolMask:
    """Return the union of the segments, `[T, H, W]`."""
    return np.stack([segments_to_mask(frame.segments, result.size) for frame in result.frames])


def write_overlays(clip: Clip, result: ClipResult, folder: Path) -> None:
    """Write the painted frames of a clip side by side as one PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    painted = [paint_frame(frame.image, result.frames[frame.index]) for frame in clip.frames(None)]
    Image.fromarray(np.concatenate(painted, axis=1)).save(folder / f"{clip.id}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores a recipe on a tree in AVSBench's S4 layout.")
    parser.add_argument("root", type=Path, help="the folder s4_data")
    parser.add_argument("overrides", nargs="*", help="key=value, such as filtering.box_threshold=0.3")
    parser.add_argument("--pipeline", default=str(Path(__file__).with_name("edge.yaml")))
    parser.add_argument("--split", default="test")
    parser.add_argument("--overlays", type=Path, help="a folder for the painted frames")
    options = parser.parse_intermixed_args()
    pipe = Pipeline.from_recipe(load_recipe(options.pipeline, options.overrides))
    metrics = BinaryMetrics()
    for clip, truth in clips(options.root, options.split):
        result = pipe(clip)
        own = metrics.update(predicted(result), truth)
        print(f"{clip.id}  J {own.score:.3f}  F {own.f or 0.0:.3f}\n{summary(result)}")
        if options.overlays:
            write_overlays(clip, result, options.overlays)
    for protocol in ("fixed", "official"):
        print(protocol, {name: round(value or 0.0, 3) for name, value in metrics.compute(protocol).items()})


if __name__ == "__main__":
    main()
