"""Does what students hear tell them what sounds? A linear classifier on the VGGish features of S4 clips.

    openavs synth s4 --out data --train 600 --val 40 --clips 60 --seed 1
    python eval/experiments/linear_probe.py --root data

Trained on the categories of the training clips' seconds; the share of the seconds it names rightly, by split. What is
missing from 1 no student can learn; what is there is not the reason for what it gets wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openavs.evaluation.benchmark import open_dataset
from openavs.training.data.audio_features import FeatureCache
from openavs.training.models.vggish import load_vggish

STEPS = 400


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--audio", default="openavs:tiny/vggish", metavar="REF", help="a folder with a VGGish")
    options = parser.parse_args()
    cache = FeatureCache(load_vggish(options.audio, "cpu"))
    names: list[str] = []
    seconds = {split: heard(options.root, split, cache, names) for split in ("train", "val", "test")}
    torch.manual_seed(0)
    probe = trained(*seconds["train"], len(names))
    right = {split: float((probe(x).argmax(1) == y).double().mean()) for split, (x, y) in seconds.items()}
    json.dump({"categories": len(names), "right": right}, sys.stdout, indent=2)
    print()
    return 0


def heard(root: Path, split: str, cache: FeatureCache, names: list[str]) -> tuple[Tensor, Tensor]:
    """The features of all seconds of a split `[N, 128]` and their categories `[N]`, numbered as `names` grows."""
    clips = [clip for clip in open_dataset("s4", root, split).clips if clip.group is not None]
    names.extend(sorted({str(clip.group) for clip in clips} - set(names)))
    features = [cache.of(clip) for clip in clips]
    places = [[names.index(str(clip.group))] * len(own) for clip, own in zip(clips, features, strict=True)]
    return torch.from_numpy(np.concatenate(features)), torch.tensor([place for own in places for place in own])


def trained(features: Tensor, categories: Tensor, count: int) -> nn.Sequential:
    """A linear layer on standardised features, trained to tell the categories."""
    norm, linear = nn.BatchNorm1d(features.shape[1], affine=False, momentum=None), nn.Linear(features.shape[1], count)
    probe = nn.Sequential(norm, linear)
    optimiser = torch.optim.Adam(linear.parameters(), lr=0.01, weight_decay=1e-4)
    for _ in range(STEPS):
        loss = F.cross_entropy(probe(features), categories)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return probe.eval()


if __name__ == "__main__":
    raise SystemExit(main())
