"""Train the tiny Mask2Former: `python -m scripts.train_tiny.mask2former --out openavs/assets/tiny/mask2former`.

About ten minutes on one CPU core. It corresponds to the Mask2Former of COCO instances from which the published
OV-AVSS starts: it segments every object of a single image, whatever its category, without audio. Its images show base
categories only, so that novel ones are new to the students that start from it. It has the sizes of `ov-avss-tiny` and
starts from the tiny ResNet.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

import torch
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from openavs.synthetic.categories import KINDS
from openavs.synthetic.scenes import scene_rng
from openavs.synthetic.shapes import Rng
from openavs.training.config import load_training_recipe
from openavs.training.models.ov_avss.config import MatcherWeights
from openavs.training.models.ov_avss.criterion import OBJECT, MatcherTarget, localizer_loss
from openavs.training.models.ov_avss.model import OvAvss
from openavs.training.models.ov_avss.network import ClipOutput
from scripts.train_tiny.common import StepLogger, parse_arguments, save_half
from scripts.train_tiny.image_data import LabeledImage, batches, render_kinds, to_tensor

logger = logging.getLogger(__name__)

BASE = tuple(index for index, kind in enumerate(KINDS) if not kind.novel)
NOVEL = tuple(index for index, kind in enumerate(KINDS) if kind.novel)
SHAPES = ((96, 96), (96, 128), (128, 128), (160, 160))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS = MatcherWeights(points=1024)


def build() -> Mask2FormerForUniversalSegmentation:
    """Build the image part of `ov-avss-tiny` with one class, on its pretrained backbone."""
    student = OvAvss.build(load_training_recipe("ov-avss-tiny").model)
    student.initialize("backbone", "openavs:tiny/resnet")
    shared = student.config.network().to_dict()
    config = Mask2FormerConfig(**{name: shared[name] for name in Mask2FormerConfig().to_dict() if name in shared})
    config.num_labels = 1
    model = Mask2FormerForUniversalSegmentation(config)
    encoder = student.network.model.pixel_level_module.encoder
    model.model.pixel_level_module.encoder.load_state_dict(encoder.state_dict())
    return model


def sample_instances(rng: Rng, size: tuple[int, int], kinds: Sequence[int] = BASE) -> LabeledImage:
    """Sample an image of one to five objects of `kinds`, the same category several times in a third of the images.

    Half of the images have a textured backdrop, and objects in the poses of their motions.
    """
    count = int(rng.choice([1, 2, 3, 4, 5], p=[0.25, 0.3, 0.2, 0.15, 0.1]))
    chosen = rng.choice(kinds, count, replace=False)
    if rng.random() < 1 / 3:
        chosen[: int(rng.integers(2, 4))] = chosen[0]
    return render_kinds(rng.permutation(chosen), rng, size, moving=bool(rng.random() < 0.5))


def target_of(item: LabeledImage) -> MatcherTarget:
    """Return the masks of the objects that are not hidden, as those of a clip of one frame."""
    seen = [number for number, box in enumerate(item.boxes()[:, 0].tolist(), start=1) if box == box]  # not NaN
    owners = torch.from_numpy(item.owners.copy())
    masks = torch.stack([owners == number for number in seen]) if seen else owners[None][:0]
    return MatcherTarget(masks[:, None].float(), torch.zeros(1, dtype=torch.long), torch.ones(1))


def predict(model: Mask2FormerForUniversalSegmentation, batch: list[LabeledImage]) -> list[list[ClipOutput]]:
    """Return for each image the outputs of each layer, as those of clips of one frame."""
    outputs = model(torch.from_numpy(to_tensor(batch, MEAN, STD)), output_auxiliary_logits=True)
    layers = [(layer["class_queries_logits"], layer["masks_queries_logits"]) for layer in outputs.auxiliary_logits]
    layers.append((outputs.class_queries_logits, outputs.masks_queries_logits))
    return [[ClipOutput(head[i], masks[i][:, None]) for head, masks in layers] for i in range(len(batch))]


def train(model: Mask2FormerForUniversalSegmentation, *, steps: int, batch: int, rate: float, seed: int) -> None:
    """Train in place with the loss of OV-AVSS; the model is in evaluation mode afterwards."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    average, log_step = 0.0, StepLogger(logger)
    model.train()
    for step, items in zip(range(steps), batches("train", seed, batch, SHAPES, sample_instances), strict=False):
        losses = localizer_loss(predict(model, items), [target_of(item) for item in items], WEIGHTS)
        optimizer.zero_grad()
        torch.autograd.backward(losses["loss"])
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average = 0.99 * average + 0.01 * losses["dice"].item() if step else losses["dice"].item()
        log_step(step, loss=losses["loss"].item(), dice=average)
    model.eval()


@torch.inference_mode()
def evaluate(
    model: Mask2FormerForUniversalSegmentation, *, split: str, count: int, kinds: Sequence[int] = BASE
) -> dict[str, float]:
    """Return figures on `count` images of 128 x 128.

    `found`: share of objects that a query with an objectness above one half covers with an IoU above one half, `iou`:
    mean IoU of these, `false`: share of such queries that cover no object.
    """
    found, false = [], []
    items = (sample_instances(scene_rng(split, 901, 0, index), (128, 128), kinds) for index in range(count))
    for item in items:
        last, truth = predict(model, [item])[0][-1], target_of(item).masks[:, 0] > 0.5
        masks = nn.functional.interpolate(last.masks.transpose(0, 1), truth.shape[-2:], mode="bilinear")[0] > 0
        masks = masks[last.objectness.softmax(-1)[:, OBJECT] > 0.5]
        overlap = (masks[:, None] & truth).sum((-2, -1)) / (masks[:, None] | truth).sum((-2, -1)).clamp(min=1)
        found += torch.cat([overlap, torch.zeros(1, len(truth))]).amax(0).tolist()
        false += (torch.cat([overlap, torch.zeros(len(masks), 1)], 1).amax(1) <= 0.5).tolist()
    hits = [iou for iou in found if iou > 0.5]
    return {
        "found": len(hits) / max(len(found), 1),
        "iou": sum(hits) / max(len(hits), 1),
        "false": sum(false) / max(len(false), 1),
    }


def main() -> None:
    """Train, save the model, and log the figures on the validation split."""
    args = parse_arguments(__doc__, steps=2600, batch=12, rate=1.5e-3, seed=0)
    model = build()
    logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    train(model, steps=args.steps, batch=args.batch, rate=args.rate, seed=args.seed)
    save_half(model, args.out)
    for name, kinds in (("base", BASE), ("novel", NOVEL)):
        figures = evaluate(model, split="val", count=200, kinds=kinds)
        logger.info("%s %s", name, json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
