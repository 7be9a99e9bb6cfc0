"""Scores a recipe on a tree in AVSBench's S4 layout and says what was heard, asked for and found in every clip.

    python examples/edge/score_s4.py ROOT/s4_data --pipeline examples/edge/edge.yaml [key=value ...]

ROOT/s4_data holds `visual_frames`, `audio_wav` and `gt_masks`, each with `<split>/<category>/<clip>`. J and F are
those of `openavs.evaluation.metrics.metrics`: `fixed` over frames, `official` as the published script has them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image as Pictures

from openavs.config.recipe import load_recipe
from openavs.evaluation.metrics.metrics import BinaryMetrics
from openavs.media import open_clip
from openavs.pipeline.pipeline import Pipeline
from openavs.structures.types import BoolMask, Clip, ClipResult, segments_to_mask
from openavs.visualization.overlay import paint_frame


def clips(root: Path, split: str) -> Iterator[tuple[Clip, BoolMask]]:
    """Each clip of the split with its truth `[T, H, W]`; the n-th mask belongs to the n-th picture."""
    for folder in sorted((root / "visual_frames" / split).glob("*/*")):
        place = folder.relative_to(root / "visual_frames")
        sound = (root / "audio_wav" / place).parent / f"{place.name}.wav"
        masks = sorted((root / "gt_masks" / place).glob("*.png"), key=lambda path: int(path.stem.rpartition("_")[2]))
        truth = np.stack([np.asarray(Pictures.open(path).convert("L")) > 0 for path in masks])
        yield open_clip(folder, audio=sound), truth


def told(result: ClipResult) -> str:
    """A clip's story in three lines: labels with their best score, phrases and boxes with the number of frames."""
    heard: dict[str, float] = {}
    for caption in (caption for frame in result.frames for caption in frame.captions):
        heard[caption.text] = max(heard.get(caption.text, 0.0), caption.score or 0.0)
    asked = Counter(prompt.phrase for frame in result.frames for prompt in frame.prompts)
    found = Counter(phrase for frame in result.frames for phrase in {segment.phrase for segment in frame.segments})
    best = sorted(heard.items(), key=lambda item: -item[1])[:6]
    return "\n".join(
        f"  {name:<6}{', '.join(items) or '-'}"
        for name, items in (
            ("captions", [f"{label} {score:.2f}" for label, score in best]),
            ("prompts", [f"{phrase} x{count}" for phrase, count in asked.most_common()]),
            ("found", [f"{phrase} x{count}" for phrase, count in found.most_common()]),
        )
    )


def predicted(result: ClipResult) -> BoolMask:
    """The union of what was found, `[T, H, W]`."""
    return np.stack([segments_to_mask(frame.segments, result.size) for frame in result.frames])


def write_overlays(clip: Clip, result: ClipResult, folder: Path) -> None:
    """The painted frames of a clip side by side, one PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    painted = [paint_frame(frame.image, result.frames[frame.index]) for frame in clip.frames(None)]
    Pictures.fromarray(np.concatenate(painted, axis=1)).save(folder / f"{clip.id}.png")


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
        print(f"{clip.id}  J {own.score:.3f}  F {own.f or 0.0:.3f}\n{told(result)}")
        if options.overlays:
            write_overlays(clip, result, options.overlays)
    for protocol in ("fixed", "official"):
        print(protocol, {name: round(value or 0.0, 3) for name, value in metrics.compute(protocol).items()})


if __name__ == "__main__":
    main()
