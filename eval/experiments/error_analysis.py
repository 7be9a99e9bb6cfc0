"""Analyzes wrong predictions for the synthetic S4 layout by the number of silent objects in the image.

    openavs synth s4 --out data --train 600 --val 40 --clips 60 --seed 1
    openavs evaluate s4 --root data --split val --pipeline student:on-labels --out on-labels-val
    python eval/experiments/error_analysis.py --root data --split val --seed 1 --predictions on-labels-val --side 96

Prints for the annotated frames of the clips with zero, one and two silent objects: the mIoU, the share of clips with no
part of the source in the mask and the mIoU of the others, the share of the silent objects' pixels in the mask, and the
mIoU of true masks that were resized to a square of `--side` pixels and back.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.mask_io import read_probability
from openavs.structures.types import BoolMask
from openavs.synthetic.datasets import FRAME_TIME
from openavs.synthetic.scenes import sample_scene

MISSED = 0.05  # a mask with a lower IoU shows something else


def main() -> None:
    """Print the figures by the number of silent objects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--seed", type=int, required=True, help="the seed of the data set")
    parser.add_argument("--predictions", type=Path, required=True, help="folder of an evaluation or its predictions")
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--limit", type=int, help="the first clips only")
    options = parser.parse_args()
    table = {str(silent): summarize(clips) for silent, clips in sorted(clips_by_silent_objects(options).items())}
    print(json.dumps(table, indent=2))


def clips_by_silent_objects(options: argparse.Namespace) -> dict[int, list[dict[str, float]]]:
    """Return the figures of each clip by its number of silent objects."""
    folder = options.predictions / "predictions"
    folder = folder if folder.is_dir() else options.predictions
    dataset = open_dataset("s4", options.root, options.split)
    clips: dict[int, list[dict[str, float]]] = defaultdict(list)
    for index, clip in enumerate(dataset.clips[: options.limit]):
        spec = sample_scene("s4", options.split, options.seed, index)
        frames = []
        for frame, true in zip(clip.annotated, dataset.read_truth(clip) > 0, strict=True):
            predicted = read_probability(folder / clip.predictions[frame]) > 127
            silent = (spec.scene.picture(frame + FRAME_TIME)[1] > 0) & ~true
            marked = (predicted & silent).sum() / silent.sum() if silent.any() else 0.0
            frames.append((iou(predicted, true), marked, iou(resized_and_back(true, options.side), true)))
        means = np.mean(frames, axis=0).tolist()
        clips[len(spec.distractors)].append(dict(zip(("miou", "silent_marked", "resized"), means, strict=True)))
    return clips


def summarize(clips: list[dict[str, float]]) -> dict[str, float]:
    """Return means over all clips, and the mIoU of those that are not missed."""
    hit = [clip["miou"] for clip in clips if clip["miou"] >= MISSED]
    return {
        "clips": len(clips),
        **{name: round(float(np.mean([clip[name] for clip in clips])), 3) for name in clips[0]},
        "missed": round(1 - len(hit) / len(clips), 3),
        "miou_of_the_others": round(float(np.mean(hit)), 3) if hit else 0.0,
    }


def iou(predicted: BoolMask, true: BoolMask) -> float:
    """Return the IoU of two masks; 1 for two empty ones."""
    union = (predicted | true).sum()
    return float((predicted & true).sum() / union) if union else 1.0


def resized_and_back(mask: BoolMask, side: int) -> BoolMask:
    """Resize a mask to a square and back, with bilinear interpolation."""
    small = F.interpolate(torch.from_numpy(mask)[None, None].float(), (side, side), mode="bilinear", antialias=True)
    return (F.interpolate(small, mask.shape, mode="bilinear")[0, 0] > 0.5).numpy()


if __name__ == "__main__":
    main()
