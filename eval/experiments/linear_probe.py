"""Trains a linear classifier of S4 categories on the VGGish features that students receive.

    openavs synth s4 --out data --train 600 --val 40 --clips 60 --seed 1
    python eval/experiments/linear_probe.py --root data

Trained on the seconds of the training clips; prints its accuracy by split. Errors of a student beyond those of this
classifier are not due to the audio features.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openavs.evaluation.benchmark import open_dataset
from openavs.training.audio_features import FeatureCache
from openavs.training.models.backbones import load_vggish

STEPS = 400


def main() -> None:
    """Train the classifier and print its accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--audio", default="openavs:tiny/vggish", metavar="REF", help="a folder with a VGGish")
    options = parser.parse_args()
    cache = FeatureCache(load_vggish(options.audio, "cpu"))
    names: list[str] = []
    splits = {split: read_split(options.root, split, cache, names) for split in ("train", "val", "test")}
    torch.manual_seed(0)
    classifier = train_classifier(*splits["train"], len(names))
    accuracy = {split: float((classifier(x).argmax(1) == y).double().mean()) for split, (x, y) in splits.items()}
    print(json.dumps({"categories": len(names), "accuracy": accuracy}, indent=2))


def read_split(root: Path, split: str, cache: FeatureCache, names: list[str]) -> tuple[Tensor, Tensor]:
    """Return the features of all seconds `[N, 128]` and their categories `[N]`; new categories are added to `names`."""
    clips = [clip for clip in open_dataset("s4", root, split).clips if clip.group is not None]
    names.extend(sorted({str(clip.group) for clip in clips} - set(names)))
    features = [cache.of(clip) for clip in clips]
    indices = [names.index(str(clip.group)) for clip in clips]
    categories = np.repeat(indices, [len(own) for own in features])
    return torch.from_numpy(np.concatenate(features)), torch.from_numpy(categories)


def train_classifier(features: Tensor, categories: Tensor, count: int) -> nn.Sequential:
    """Train a linear layer on standardized features."""
    norm, linear = nn.BatchNorm1d(features.shape[1], affine=False, momentum=None), nn.Linear(features.shape[1], count)
    classifier = nn.Sequential(norm, linear)
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.01, weight_decay=1e-4)
    for _ in range(STEPS):
        loss = F.cross_entropy(classifier(features), categories)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return classifier.eval()


if __name__ == "__main__":
    main()
