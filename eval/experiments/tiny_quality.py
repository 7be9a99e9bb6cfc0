"""Scores the recipe `tiny` on held-out scenes of the synthetic world, layout by layout.

    python eval/experiments/tiny_quality.py --clips 100 --json
    python eval/experiments/tiny_quality.py --layouts single-object

`s4`, `ms3`, `avss`: writes a test set of the layout to a temporary folder, runs the recipe on its frames and audio
files, and prints J and F (official protocol, batches of one clip) or the foreground mIoU (fixed protocol); the share of
silent frames with an empty mask; and the share of clips with a silent object in the image in which it was segmented
(more than a quarter of its visible pixels in a frame).

`single-object`: `--scenes` scenes of two frames per category with one object that sounds, all boxes kept. Prints the
share of frames with the right first caption, the scores of the boxes on the object, the share of frames above some
thresholds, and the best scores for an object that is not in the image and for an unknown word.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from openavs.config.recipe import load_recipe
from openavs.evaluation.datasets.tables import CLASSES
from openavs.evaluation.metrics.metrics import BinaryMetrics, SemanticMetrics
from openavs.evaluation.metrics.silence import SilenceMetrics
from openavs.media.clip import open_clip
from openavs.pipeline.pipeline import Pipeline
from openavs.structures.masks import segments_to_label_map, segments_to_mask
from openavs.structures.types import ClipResult
from openavs.synthetic.categories import KINDS
from openavs.synthetic.datasets import FRAME_TIME, SEMANTIC_SIZE, scene_to_clip, semantic_layout, write_layout
from openavs.synthetic.scenes import Role, SceneSpec, plan_scene, sample_scene, scene_rng

SEGMENTED = 0.25  # share of the visible pixels of a silent object
SINGLE_OBJECT_SEED = 77_000
THRESHOLDS = (0.16, 0.2, 0.25, 0.3)


def main() -> None:
    """Parse the options, score the layouts and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", default=["s4", "ms3", "avss"])
    parser.add_argument("--clips", type=int, default=100, help="test clips per layout")
    parser.add_argument("--scenes", type=int, default=4, help="scenes per category of single-object")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, dict[str, Any]] = {}
    for layout in options.layouts:
        if layout == "single-object":
            figures[layout] = score_single_objects(options.scenes, options.set)
        else:
            figures[layout] = score_layout(layout, options.clips, options.seed, options.set)
    print(json.dumps(figures, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in figures.items()))


# ----------------------------------------------------------------------------------------------------------- layouts


def score_layout(layout: str, count: int, seed: int, overrides: Sequence[str]) -> dict[str, float | None]:
    """Write, segment and score one layout."""
    closed = [f"vocabulary={json.dumps(list(CLASSES[1:]))}"] if layout == "avss" else []
    pipeline = Pipeline.from_recipe(load_recipe("tiny", [*overrides, *closed]))
    binary, semantic, silence = BinaryMetrics(), SemanticMetrics(), SilenceMetrics()
    distractor_clips: list[bool] = []
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_layout(layout, root, {"test": count}, seed)
        for (frames, audio, masks), spec in zip(clip_files(layout, root), specs(layout, count, seed), strict=True):
            truth = read_masks(masks)
            started = time.monotonic()
            result = pipeline(open_clip(frames, fps=1.0, audio=audio))
            seconds += time.monotonic() - started
            union = np.stack([segments_to_mask(frame.segments, result.size) for frame in result.frames])
            silence.update(union, np.array([not spec.scene.sounding(i) for i in range(spec.scene.seconds)]))
            if spec.distractors:
                distractor_clips.append(any(is_segmented(spec, name, union) for name in spec.distractors))
            if layout == "avss":
                semantic.update(label_maps(result), truth)
            else:
                binary.update(union, truth > 0)
    return {
        **(semantic.compute("fixed") if layout == "avss" else binary.compute("official")),
        **silence.compute(),
        "distractor_clips": float(np.mean(distractor_clips)) if distractor_clips else None,
        "seconds": round(seconds, 1),
    }


def specs(layout: str, count: int, seed: int) -> Iterator[SceneSpec]:
    """Yield the scenes of a written test set, in the order of its CSV."""
    for index in range(count):
        if layout == "avss":
            yield sample_scene(semantic_layout(index)[1], "test", seed + 500, index, size=SEMANTIC_SIZE)
        else:
            yield sample_scene(layout, "test", seed, index)


def clip_files(layout: str, root: Path) -> list[tuple[Path, Path, Path]]:
    """Return frames, audio and masks of every clip, in the order of the CSV."""
    table = root / ("metadata.csv" if layout == "avss" else f"{layout}_meta_data.csv")
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    if layout == "avss":
        folders = [root / row[6] / row[1] for row in rows]
        return [(folder / "frames", folder / "audio.wav", folder / "labels_semantic") for folder in folders]
    data = root / f"{layout}_data"
    if layout == "s4":
        paths = [(row[3] + "/" + row[2] + "/" + row[0],) * 2 for row in rows]
    else:
        paths = [(row[0], row[1] + "/" + row[0]) for row in rows]
    return [
        (data / "visual_frames" / frames, data / "audio_wav" / f"{clip}.wav", data / "gt_masks" / clip)
        for frames, clip in paths
    ]


def read_masks(folder: Path) -> np.ndarray:
    """Return the masks or label maps of a clip, `[T, H, W]`."""
    paths = sorted(folder.iterdir(), key=lambda path: int(path.stem.rsplit("_", 1)[-1]))
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def label_maps(result: ClipResult) -> np.ndarray:
    """Return class indices `[T, H, W]`."""
    index = {name: i for i, name in enumerate(CLASSES)}
    maps = [
        segments_to_label_map(frame.segments, [index[s.label or "background"] for s in frame.segments], result.size)
        for frame in result.frames
    ]
    return np.stack(maps)


def is_segmented(spec: SceneSpec, distractor: str, masks: np.ndarray) -> bool:
    """Return True if masks `[T, H, W]` cover enough of a silent object in a frame."""
    number = next(i for i, actor in enumerate(spec.scene.actors, start=1) if actor.kind == distractor)
    for second, mask in enumerate(masks):
        visible = spec.scene.picture(second + FRAME_TIME)[1] == number
        if visible.any() and (mask & visible).sum() > SEGMENTED * visible.sum():
            return True
    return False


# ----------------------------------------------------------------------------------------------------- single objects


def score_single_objects(scenes: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Run scenes with one sounding object and summarize captions and scores."""
    pipeline = Pipeline.from_recipe(load_recipe("tiny", [*overrides, "filtering.box_threshold=0.0"]))
    captioned: list[bool] = []
    present: list[float] = []
    absent: list[float] = []
    unknown: list[float] = []
    for number, kind in enumerate(KINDS):
        for index in range(scenes):
            rng = scene_rng("test", SINGLE_OBJECT_SEED, number, index)
            scene = plan_scene([Role(kind.name, (True, True))], rng, 2, (224, 224))
            for frame in pipeline(scene_to_clip(scene, kind.name)).frames:
                best = max(frame.captions, key=lambda caption: caption.score or 0.0, default=None)
                captioned.append(best is not None and best.text == kind.heard[0])
                present.append(max((s.score for s in frame.segments if s.phrase == kind.name), default=0.0))
            image = scene.picture(0.5)[0]
            absent.append(best_score(pipeline, image, KINDS[(number + 7) % len(KINDS)].name))
            unknown.append(best_score(pipeline, image, "teapot"))
    return {
        "frames": len(captioned),
        "right first caption": float(np.mean(captioned)),
        "score of the object (5th, 50th, 95th percentile)": percentiles(present),
        "found at a threshold of": {str(limit): float(np.mean(np.array(present) >= limit)) for limit in THRESHOLDS},
        "score of an absent object (5th, 50th, 95th)": percentiles(absent),
        "score of an unknown word (5th, 50th, 95th)": percentiles(unknown),
    }


def best_score(pipeline: Pipeline, image: np.ndarray, phrase: str) -> float:
    """Return the score of the best box of a single phrase."""
    assert pipeline.detector is not None
    return max((box.score for box in pipeline.detector.detect([image], [[phrase]])[0]), default=0.0)


def percentiles(scores: list[float]) -> list[float]:
    """Return the 5th, 50th and 95th percentile."""
    return [round(float(score), 3) for score in np.percentile(scores, [5, 50, 95])]


if __name__ == "__main__":
    main()
