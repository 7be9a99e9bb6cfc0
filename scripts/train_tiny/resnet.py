"""Train the tiny ResNet: `python -m scripts.train_tiny.resnet --out openavs/assets/tiny/resnet`.

About ten minutes on one CPU core. It corresponds to an ImageNet backbone: it is trained to tag images, without masks or
audio, and initializes the students.
"""

from __future__ import annotations

import json
import logging

import numpy as np
import torch
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

from openavs.synthetic.categories import KINDS
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from openavs.synthetic.shapes import Rng
from openavs.training.base import MEAN, STD, normalize_images
from openavs.training.models.backbones import backbone
from scripts.train_tiny.common import StepLogger, parse_arguments, save_half

logger = logging.getLogger(__name__)

_IMAGES = 910  # seed of these images, not used by any data set


def build_model(name: str = "resnet_tiny") -> ResNetForImageClassification:
    """Build an untrained classifier of the synthetic categories on a backbone of the students."""
    labels = dict(enumerate(kind.name for kind in KINDS))
    return ResNetForImageClassification(
        ResNetConfig(**backbone(name).options, id2label=labels, label2id={name: i for i, name in labels.items()})
    )


def batch_of(rng: Rng, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images uint8 `[count, 3, side, side]` of one to three objects, and their tags `[count, KINDS]`."""
    images, tags = [], torch.zeros(count, len(KINDS))
    for row in range(count):
        kinds = rng.choice(len(KINDS), int(rng.choice([1, 2, 3], p=[0.4, 0.35, 0.25])), replace=False)
        scene = plan_scene([Role(KINDS[k].name, (True,)) for k in kinds], rng, 1, (side, side))
        images.append(scene.picture(float(rng.uniform(0, 5)))[0])
        tags[row, kinds] = 1.0
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), tags


def train(model: ResNetForImageClassification, *, steps: int, batch: int, rate: float, seed: int) -> None:
    """Train in place; the model is in evaluation mode afterwards."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    average, log_step = 0.0, StepLogger(logger)
    model.train()
    for step in range(steps):
        rng = scene_rng("train", _IMAGES, seed, step)
        images, tags = batch_of(rng, batch, int(rng.choice([96, 128])))
        loss = F.binary_cross_entropy_with_logits(model(normalize_images(images)).logits, tags)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        average = 0.99 * average + 0.01 * loss.item() if step else loss.item()
        log_step(step, loss=average)
    model.eval()


@torch.inference_mode()
def evaluate(model: ResNetForImageClassification, *, split: str, count: int, side: int = 96) -> dict[str, float]:
    """Return the shares of images whose best tags are exactly the present categories, and whose best tag is present."""
    right, first = [], []
    for index in range(count // 50):
        images, tags = batch_of(scene_rng(split, _IMAGES, 0, index), 50, side)
        logits = model(normalize_images(images)).logits
        for row, own in zip(logits, tags, strict=True):
            best = row.topk(int(own.sum())).indices
            right.append(bool(own[best].all()))
            first.append(bool(own[best[0]]))
    return {"all_right": float(np.mean(right)), "first_right": float(np.mean(first))}


def main() -> None:
    """Train, save the model and its preprocessing, and log the figures on the validation split."""
    args = parse_arguments(__doc__, backbone="resnet_tiny", steps=3000, batch=32, rate=4e-3, seed=0)
    model = build_model(args.backbone)
    logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    train(model, steps=args.steps, batch=args.batch, rate=args.rate, seed=args.seed)
    save_half(model, args.out)
    ConvNextImageProcessorPil(
        size={"shortest_edge": 96}, crop_pct=1.0, image_mean=list(MEAN), image_std=list(STD)
    ).save_pretrained(args.out)
    figures = evaluate(model, split="val", count=1000)
    logger.info("%s", json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
