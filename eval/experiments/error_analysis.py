"""Where predictions for the synthetic world's S4 layout are wrong: by how many silent things stand in the picture.

    openavs synth s4 --out data --train 600 --val 40 --clips 60 --seed 1
    openavs evaluate s4 --root data --split val --pipeline student:on-labels --out on-labels-val
    python eval/experiments/error_analysis.py --root data --split val --seed 1 --predictions on-labels-val --side 96

Of the annotated frames of the clips with no, one and two silent things: the mIoU, the share of clips in which nothing
of the source is hit, the mIoU of the others, how much of the silent things' pixels is marked, and the mIoU of true
masks that went through a square of `--side` pixels and back.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.mask_io import read_probability
from openavs.synthetic.datasets import FRAME_TIME
from openavs.synthetic.scene_sampling import sample_scene

MISSED = 0.05  # a mask that overlaps less shows something else


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--seed", type=int, required=True, help="that the data set was written with")
    parser.add_argument("--predictions", type=Path, required=True, help="an evaluation's folder, or its predictions")
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--limit", type=int, help="the first clips only")
    options = parser.parse_args()
    table = {str(silent): summary(rows) for silent, rows in sorted(by_silent_things(options).items())}
    print(json.dumps(table, indent=2))
    return 0


def by_silent_things(options: argparse.Namespace) -> dict[int, list[dict[str, float]]]:
    """The figures of each clip, by its number of silent things."""
    folder = options.predictions / "predictions"
    folder = folder if folder.is_dir() else options.predictions
    dataset = open_dataset("s4", options.root, options.split)
    found: dict[int, list[dict[str, float]]] = {}
    for index, clip in enumerate(dataset.clips[: options.limit]):
        cast = sample_scene("s4", options.split, options.seed, index)
        rows = []
        for frame, true in zip(clip.annotated, dataset.read_truth(clip) > 0, strict=True):
            said = read_probability(folder / clip.predictions[frame]) > 127
            silent = (cast.scene.picture(frame + FRAME_TIME)[1] > 0) & ~true
            marked = (said & silent).sum() / silent.sum() if silent.any() else 0.0
            rows.append((iou(said, true), marked, iou(resized(true, options.side), true)))
        means = dict(zip(("miou", "silent_marked", "resized"), np.mean(rows, axis=0).tolist(), strict=True))
        found.setdefault(len(cast.distractors), []).append(means)
    return found


def summary(clips: list[dict[str, float]]) -> dict[str, float]:
    """Means over clips, and apart those that are not missed."""
    hit = [clip["miou"] for clip in clips if clip["miou"] >= MISSED]
    means = {name: round(float(np.mean([clip[name] for clip in clips])), 3) for name in clips[0]}
    return {
        "clips": len(clips),
        **means,
        "missed": round(1 - len(hit) / len(clips), 3),
        "miou_of_the_others": round(float(np.mean(hit)), 3) if hit else 0.0,
    }


def iou(said: Any, true: Any) -> float:
    either = (said | true).sum()
    return float((said & true).sum() / either) if either else 1.0


def resized(mask: Any, side: int) -> Any:
    """A mask at a square's size and back, both smoothly."""
    small = F.interpolate(torch.from_numpy(mask)[None, None].float(), (side, side), mode="bilinear", antialias=True)
    return (F.interpolate(small, mask.shape, mode="bilinear")[0, 0] > 0.5).numpy()


if __name__ == "__main__":
    raise SystemExit(main())
