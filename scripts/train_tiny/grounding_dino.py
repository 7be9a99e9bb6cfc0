"""Train the tiny Grounding DINO: `python -m scripts.train_tiny.grounding_dino --out FOLDER`.

Four stages. First the backbone is trained alone to classify every cell. It is a ConvNeXt, whose LayerNorms are
trained, because transformers freezes all BatchNorms of the detector's backbone. Then the whole detector is trained to
ground words, with an additional dense loss (`dense_loss`): transformers 5.23 computes the loss of the first stage's
proposals from detached boxes and from the learned query embeddings, so no other loss teaches localization to the
encoder. The images of both stages have at most one object of a category. The third continues, at a lower rate,
with images of which three of five have two or three objects of one category; the last does so with more objects that no
phrase names, and with textured backdrops. Both start from the weights as saved before, in float16, so they can be
repeated alone: `--start FOLDER` skips the first two, and `--repeated 0` the third.

All images of a step have the same number of one-word phrases, because the library's loss finds the positive tokens of a
batch only if they are at the same positions in every image.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertTokenizerFast,
    ConvNextConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
)
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import generalized_box_iou
from transformers.loss.loss_grounding_dino import sigmoid_focal_loss

from openavs.evaluation.datasets.tables import CLASSES
from openavs.synthetic.categories import KINDS
from openavs.synthetic.scenes import scene_rng
from openavs.synthetic.shapes import Rng
from scripts.train_tiny.common import StepLogger, parse_arguments, save_half
from scripts.train_tiny.image_data import (
    LabeledImage,
    Sampler,
    batches,
    sample_bystanders,
    sample_image,
    sample_repeated,
    to_tensor,
)

logger = logging.getLogger(__name__)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORDS = sorted({name for name in CLASSES if name.isalpha() and name != "background"} | {k.name for k in KINDS})
SHAPES = ((128, 128), (128, 128), (128, 128), (128, 171), (171, 128), (128, 228))
"""Sizes (height, width) after the processor's resize of the aspect ratios that clips have, mostly squares."""
ABSENT = [word for word in WORDS if word not in {k.name for k in KINDS}]
"""Words without images: sometimes used as phrases, so that unknown words are not detected."""


def tokenizer(folder: Path) -> BertTokenizerFast:
    """Build a WordPiece tokenizer of `WORDS`; the ids that Grounding DINO's code hard-codes are those of BERT."""
    vocabulary = [f"[unused{i}]" for i in range(1030)]
    for token, place in (
        ("[PAD]", 0),
        ("[UNK]", 100),
        ("[CLS]", 101),
        ("[SEP]", 102),
        ("[MASK]", 103),
        (".", 1012),
        ("?", 1029),
    ):
        vocabulary[place] = token
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary + WORDS) + "\n", encoding="utf-8")
    return BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=128)


def build(vocabulary_size: int) -> GroundingDinoForObjectDetection:
    """Build the detector: 20 queries, 3 levels, 2 encoder and 3 decoder layers of width 96."""
    backbone = ConvNextConfig(
        hidden_sizes=[40, 80, 128, 160],
        depths=[2, 2, 3, 2],
        layer_scale_init_value=0.0,  # disabled: initial scales of 1e-6 prevent a small network from training
        out_features=["stage2", "stage3", "stage4"],
    )
    text = BertConfig(
        vocab_size=vocabulary_size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=128,
    )
    encoder = {"encoder_layers": 2, "encoder_ffn_dim": 288, "encoder_attention_heads": 6, "encoder_n_points": 2}
    decoder = {"decoder_layers": 3, "decoder_ffn_dim": 288, "decoder_attention_heads": 6}
    return GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=backbone,
            text_config=text,
            d_model=96,
            num_queries=20,
            num_feature_levels=3,
            max_text_len=128,
            dropout=0.0,
            fusion_droppath=0.0,
            auxiliary_loss=True,
            disable_custom_kernels=True,
            **encoder,
            **decoder,
        )
    )


# ------------------------------------------------------------------------------------- stage 1: dense classification


def cell_owners(images: list[LabeledImage], stride: int) -> npt.NDArray[np.int64]:
    """Return the object at the center of each cell `[B, h, w]` (0: background, i + 1: object i)."""
    owners = np.stack([p.owners for p in images]).astype(np.int64)
    height, width = owners.shape[1] // stride, owners.shape[2] // stride
    return owners[:, stride // 2 :: stride, stride // 2 :: stride][:, :height, :width]


def cell_labels(images: list[LabeledImage], stride: int) -> torch.Tensor:
    """Return the category at the center of each cell `[B, h, w]`; the last index is the background."""
    owners = cell_owners(images, stride)
    lookup = np.stack([np.array([len(KINDS), *p.kinds] + [0] * (4 - len(p.kinds))) for p in images])
    return torch.from_numpy(np.take_along_axis(lookup, owners.reshape(len(images), -1), axis=1).reshape(owners.shape))


def pretrain(backbone: nn.Module, steps: int, seed: int) -> None:
    """Train the backbone by classification of the cells of the first two levels."""
    channels: Any = backbone.channels
    heads = nn.ModuleList(nn.Conv2d(c, len(KINDS) + 1, 1) for c in channels[:2])
    optimizer = torch.optim.AdamW([*backbone.parameters(), *heads.parameters()], lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    weight = torch.ones(len(KINDS) + 1)
    weight[-1] = 0.3
    right, log_step = 0.0, StepLogger(logger, "cells", every=50)
    for step, batch in zip(range(steps), batches("train", seed, 24, SHAPES[:1]), strict=False):
        maps = backbone(torch.from_numpy(to_tensor(batch, MEAN, STD))).feature_maps
        loss = torch.zeros(())
        for head, features, stride in zip(heads, maps, (8, 16), strict=False):
            logits, target = head(features), cell_labels(batch, stride)
            loss = loss + nn.functional.cross_entropy(logits, target, weight)
            things = target < len(KINDS)
            right = 0.98 * right + 0.02 * float((logits.argmax(1) == target)[things].float().mean())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        log_step(step, loss=loss.item(), right=right)


# ---------------------------------------------------------------------------------------- stage 2: grounding


def phrases_for(item: LabeledImage, count: int, rng: Rng) -> list[str]:
    """Return `count` words in random order: categories of the image, as far as they fit, and others."""
    present = [KINDS[k].name for k in dict.fromkeys(item.kinds)]
    others = [k.name for k in KINDS if k.name not in present]
    rng.shuffle(present)
    phrases = present[: int(rng.integers(0, min(len(present), count) + 1))] if rng.random() < 0.2 else present[:count]
    pool = list(rng.permutation(others)) + list(rng.permutation(ABSENT))
    share = np.array([1.0] * len(others) + [0.15] * len(ABSENT))
    fill = rng.choice(len(pool), count - len(phrases), replace=False, p=share / share.sum())
    phrases = phrases + [str(pool[i]) for i in fill]
    rng.shuffle(phrases)
    return phrases


def targets_for(item: LabeledImage, phrases: list[str]) -> dict[str, torch.Tensor]:
    """Return relative boxes (center and size) of the objects of the phrases, and the indices of the phrases."""
    height, width = item.owners.shape
    rows, labels = [], []
    for kind, (x0, y0, x1, y1) in zip(item.kinds, item.boxes().tolist(), strict=True):
        if KINDS[kind].name in phrases and not math.isnan(x0):
            rows.append([(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height])
            labels.append(phrases.index(KINDS[kind].name))
    return {
        "boxes": torch.tensor(rows, dtype=torch.float32).reshape(-1, 4),
        "class_labels": torch.tensor(labels, dtype=torch.long),
    }


STRIDES = (8, 16, 32)
LAST_RATE = 2e-4
"""Learning rate of the last two stages."""
COUNTS = (1, 2, 3, 4, 6, 8)
"""Numbers of phrases of a step, equally likely."""
LAST_COUNTS = (1, 1, 1, 2, 2, 3, 4, 8)
"""Numbers of phrases in the last stage: mostly few, so that most images have objects that no phrase names."""


def dense_loss(
    outputs: Any, batch: list[LabeledImage], phrases: list[list[str]], labels: list[dict[str, torch.Tensor]]
) -> Any:
    """Return the dense loss of the encoder: the phrase and the box of each cell.

    Focal loss over cells and phrases, and L1 and generalized IoU over the cells of objects with a phrase, each divided
    by the number of these cells, as for FCOS (arXiv 1904.01355).
    """
    count = len(phrases[0])
    logits = outputs.enc_outputs_class[:, :, 1 : 2 * count : 2]  # the token of phrase i is at 1 + 2 i
    boxes = outputs.enc_outputs_coord_logits.sigmoid()
    places = np.full((len(batch), 5), -1)  # by owner: the row of the label, -1 without a phrase
    for row, (item, own) in enumerate(zip(batch, phrases, strict=True)):
        seen = 0
        for number, (kind, box) in enumerate(zip(item.kinds, item.boxes().tolist(), strict=True)):
            if KINDS[kind].name in own and not math.isnan(box[0]):
                places[row, number + 1] = seen
                seen += 1
    owners = np.concatenate([cell_owners(batch, stride).reshape(len(batch), -1) for stride in STRIDES], axis=1)
    rows = torch.from_numpy(np.take_along_axis(places, owners, axis=1))  # [B, S]
    target = torch.zeros_like(logits)
    image, cell = torch.nonzero(rows >= 0, as_tuple=True)
    if not len(image):
        return logits.sum() * 0.0
    chosen = rows[image, cell].tolist()
    wanted = torch.stack([labels[i]["boxes"][r] for i, r in zip(image.tolist(), chosen, strict=True)])
    phrase = torch.stack([labels[i]["class_labels"][r] for i, r in zip(image.tolist(), chosen, strict=True)])
    target[image, cell, phrase] = 1.0
    found = boxes[image, cell]
    focal = sigmoid_focal_loss(logits, target, len(image))
    overlap = generalized_box_iou(center_to_corners_format(found), center_to_corners_format(wanted)).diagonal()
    return 2 * focal + 5 * (found - wanted).abs().sum() / len(image) + 2 * (1 - overlap).mean()


def train(
    model: GroundingDinoForObjectDetection,
    words: BertTokenizerFast,
    out: Path,
    steps: int,
    seed: int,
    rate: float,
    sample: Sampler = sample_image,
    counts: Sequence[int] = COUNTS,
) -> None:
    """Train grounding with AdamW, one cycle and gradients clipped at 0.1; save every 500 steps.

    Each step draws its number of phrases from `counts`.
    """
    slow = [p for n, p in model.named_parameters() if "backbone" in n]
    fast = [p for n, p in model.named_parameters() if "backbone" not in n]
    groups = [{"params": fast, "lr": rate}, {"params": slow, "lr": rate / 3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [rate, rate / 3], total_steps=steps, pct_start=0.08)
    smooth, log_step = np.zeros(2), StepLogger(logger)
    for step, batch in zip(range(steps), batches("train", seed + 1, 16, SHAPES, sample), strict=False):
        rng = scene_rng("train", 901, seed, step)
        count = int(rng.choice(counts))
        phrases = [phrases_for(item, count, rng) for item in batch]
        labels = [targets_for(item, own) for item, own in zip(batch, phrases, strict=True)]
        if not any(len(label["class_labels"]) for label in labels):
            continue
        text = words([" . ".join(own) + " ." for own in phrases], return_tensors="pt")
        outputs = model(pixel_values=torch.from_numpy(to_tensor(batch, MEAN, STD)), labels=labels, **text)
        dense = dense_loss(outputs, batch, phrases, labels)
        optimizer.zero_grad()
        torch.autograd.backward(outputs.loss + dense)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        schedule.step()
        losses = np.array([outputs.loss.item(), dense.item()])
        smooth = losses if not smooth.any() else 0.98 * smooth + 0.02 * losses
        log_step(step, loss=smooth[0], dense=smooth[1])
        if step % 500 == 499:
            logger.info("step %d: %s", step + 1, evaluate(model, words))
            save_half(model, out)


@torch.inference_mode()
def evaluate(model: GroundingDinoForObjectDetection, words: BertTokenizerFast, count: int = 4) -> dict[str, float]:
    """Return recall at IoU 0.5 and score 0.3, mean IoU, and boxes of absent words per image (validation seeds)."""
    model.eval()
    found = total = wrong = images = 0
    overlap = 0.0
    for step, batch in zip(range(count), batches("val", 7, 24, SHAPES), strict=False):
        rng = scene_rng("val", 901, 7, step)
        phrases = [phrases_for(item, 4, rng) for item in batch]
        text = words([" . ".join(own) + " ." for own in phrases], return_tensors="pt")
        outputs = model(pixel_values=torch.from_numpy(to_tensor(batch, MEAN, STD)), **text)
        scores = outputs.logits[:, :, [1 + 2 * i for i in range(4)]].sigmoid()
        for item, own, score, boxes in zip(batch, phrases, scores, outputs.pred_boxes, strict=True):
            target = targets_for(item, own)
            best = score.max(dim=0)
            present = dict(zip(target["class_labels"].tolist(), target["boxes"], strict=True))
            for place in range(4):
                if place in present:
                    total += 1
                    iou = box_iou(boxes[best.indices[place]], present[place])
                    found += int(best.values[place] > 0.3 and iou > 0.5)
                    overlap += iou
                else:
                    wrong += int(best.values[place] > 0.3)
            images += 1
    model.train()
    return {"recall": found / total, "iou": overlap / total, "wrong_per_image": wrong / images}


def box_iou(one: torch.Tensor, two: torch.Tensor) -> float:
    """Return the IoU of two boxes given as center and size."""
    low = torch.maximum(one[:2] - one[2:] / 2, two[:2] - two[2:] / 2)
    high = torch.minimum(one[:2] + one[2:] / 2, two[:2] + two[2:] / 2)
    inter = (high - low).clamp(min=0).prod()
    return float(inter / (one[2:].prod() + two[2:].prod() - inter))


def main() -> None:
    """Train and save the model."""
    # `cells`, `repeated`, `bystanders`: steps of the first and the last two stages
    options = parse_arguments(
        __doc__, cells=1300, steps=3000, repeated=500, bystanders=600, rate=3e-4, seed=1, start=""
    )
    words = tokenizer(options.out)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 228})
    GroundingDinoProcessor(images, words).save_pretrained(options.out)
    if not options.start:
        model = build(len(words))
        logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
        pretrain(model.model.backbone.conv_encoder.model, options.cells, options.seed)
        train(model, words, options.out, options.steps, options.seed, options.rate)
        logger.info("%s", evaluate(model, words, 20))
        save_half(model, options.out)
    start = options.start or options.out
    stages = ((options.repeated, sample_repeated, COUNTS), (options.bystanders, sample_bystanders, LAST_COUNTS))
    for number, (steps, sample, counts) in enumerate(stages, start=1):
        if steps:
            model = GroundingDinoForObjectDetection.from_pretrained(start, dtype=torch.float32).train()
            torch.manual_seed(options.seed + number)  # of dropout; the same with and without the stages before
            train(model, words, options.out, steps, options.seed + number, LAST_RATE, sample, counts)
            logger.info("%s", evaluate(model, words, 20))
            save_half(model, options.out)
            start = options.out


if __name__ == "__main__":
    main()
