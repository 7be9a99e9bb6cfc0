"""Trains the tiny Grounding DINO: `python -m scripts.train_tiny.grounding_dino --out FOLDER`.

Two stages. First the backbone alone learns, at every cell, what kind of thing is there (transformers freezes every
BatchNorm of the detector's backbone, so the backbone is a ConvNeXt, whose LayerNorms learn). Then the whole detector
learns to ground words, with a dense loss of our own beside the library's (`dense_loss`): transformers 5.23 computes the
loss of the first stage's proposals from detached boxes and from the learned query embeddings, so that nothing else
would teach the encoder where to look.

Every image of a step gets the same number of one-word phrases, because the library's loss finds the positive tokens of
a batch only if they stand at the same places in every image.
"""

from __future__ import annotations

import logging
import math
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

from openavs.evaluation.datasets.classes import CLASSES
from openavs.synthetic.categories import KINDS
from openavs.synthetic.scenes import scene_rng
from openavs.synthetic.shapes import Rng
from scripts.train_tiny.image_data import Picture, batches, to_tensor
from scripts.train_tiny.log import Teller
from scripts.train_tiny.options import begin
from scripts.train_tiny.weights import save_half

log = logging.getLogger("detector")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WORDS = sorted({name for name in CLASSES if name.isalpha() and name != "background"} | {k.name for k in KINDS})
SHAPES = ((128, 128), (128, 128), (128, 128), (128, 171), (171, 128), (128, 228))
"""Sizes (height, width) after the processor's resize of the aspect ratios that clips have, mostly squares."""
ABSENT = [word for word in WORDS if word not in {k.name for k in KINDS}]
"""Words the world has no picture of: asked now and then, so that unknown words find nothing."""


def tokenizer(folder: Path) -> BertTokenizerFast:
    """A WordPiece tokenizer of the words above; the ids that Grounding DINO's code hard-codes are BERT's own."""
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
    """The detector: 20 queries, 3 levels, 2 encoder and 3 decoder layers of width 96."""
    backbone = ConvNextConfig(
        hidden_sizes=[40, 80, 128, 160],
        depths=[2, 2, 3, 2],
        layer_scale_init_value=0.0,  # none: scales that begin at 1e-6 keep a small network from learning
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


# ------------------------------------------------------------------------------------- stage 1: what is where


def cell_owners(pictures: list[Picture], stride: int) -> npt.NDArray[np.int64]:
    """Who is under the middle of every cell `[B, h, w]` (0: nobody, i + 1: thing i), cut to the backbone's cells."""
    owners = np.stack([p.owners for p in pictures]).astype(np.int64)
    height, width = owners.shape[1] // stride, owners.shape[2] // stride
    return owners[:, stride // 2 :: stride, stride // 2 :: stride][:, :height, :width]


def cell_labels(pictures: list[Picture], stride: int) -> torch.Tensor:
    """The kind under the middle of every cell `[B, h, w]`; the last index is the ground."""
    owners = cell_owners(pictures, stride)
    lookup = np.stack([np.array([len(KINDS), *p.kinds] + [0] * (4 - len(p.kinds))) for p in pictures])
    return torch.from_numpy(np.take_along_axis(lookup, owners.reshape(len(pictures), -1), axis=1).reshape(owners.shape))


def pretrain(backbone: nn.Module, steps: int, seed: int) -> None:
    """Dense classification of the cells of the first two levels."""
    channels: Any = backbone.channels
    heads = nn.ModuleList(nn.Conv2d(c, len(KINDS) + 1, 1) for c in channels[:2])
    optimizer = torch.optim.AdamW([*backbone.parameters(), *heads.parameters()], lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    weight = torch.ones(len(KINDS) + 1)
    weight[-1] = 0.3
    right, tell = 0.0, Teller(log, "cells", every=50)
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
        tell(step, loss=loss.item(), right=right)


# ---------------------------------------------------------------------------------------- stage 2: words to boxes


def phrases_for(item: Picture, count: int, rng: Rng) -> list[str]:
    """`count` words in random order: what is in the picture (as far as there is room) and what is not."""
    present = [KINDS[k].name for k in item.kinds]
    others = [k.name for k in KINDS if k.name not in present]
    rng.shuffle(present)
    asked = present[: int(rng.integers(0, min(len(present), count) + 1))] if rng.random() < 0.2 else present[:count]
    pool = list(rng.permutation(others)) + list(rng.permutation(ABSENT))
    share = np.array([1.0] * len(others) + [0.15] * len(ABSENT))
    fill = rng.choice(len(pool), count - len(asked), replace=False, p=share / share.sum())
    asked = asked + [str(pool[i]) for i in fill]
    rng.shuffle(asked)
    return asked


def targets_for(item: Picture, asked: list[str]) -> dict[str, torch.Tensor]:
    """Boxes (centre and size, relative) of the things that were asked for, and the places of their phrases."""
    height, width = item.owners.shape
    rows, labels = [], []
    for kind, (x0, y0, x1, y1) in zip(item.kinds, item.boxes().tolist(), strict=True):
        if KINDS[kind].name in asked and not math.isnan(x0):
            rows.append([(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height])
            labels.append(asked.index(KINDS[kind].name))
    return {
        "boxes": torch.tensor(rows, dtype=torch.float32).reshape(-1, 4),
        "class_labels": torch.tensor(labels, dtype=torch.long),
    }


STRIDES = (8, 16, 32)


def dense_loss(
    outputs: Any, batch: list[Picture], asked: list[list[str]], labels: list[dict[str, torch.Tensor]]
) -> Any:
    """What every cell of the encoder should say: which phrase it answers, and the box of the thing it lies on.

    Focal loss over cells and phrases, and L1 and generalised IoU over the cells that lie on a thing that was asked for,
    each divided by the number of those cells (as FCOS and its kin are trained).
    """
    count = len(asked[0])
    logits = outputs.enc_outputs_class[:, :, 1 : 2 * count : 2]  # the token of phrase i stands at 1 + 2 i
    boxes = outputs.enc_outputs_coord_logits.sigmoid()
    places = np.full((len(batch), 5), -1)  # by owner: the row of the label, -1 for who was not asked for
    for row, (item, phrases) in enumerate(zip(batch, asked, strict=True)):
        seen = 0
        for number, (kind, box) in enumerate(zip(item.kinds, item.boxes().tolist(), strict=True)):
            if KINDS[kind].name in phrases and not math.isnan(box[0]):
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
    model: GroundingDinoForObjectDetection, words: BertTokenizerFast, out: Path, steps: int, seed: int, rate: float
) -> None:
    """Grounding: AdamW, one cycle, gradients clipped at 0.1; what is learnt so far is saved every 500 steps."""
    slow = [p for n, p in model.named_parameters() if "backbone" in n]
    fast = [p for n, p in model.named_parameters() if "backbone" not in n]
    groups = [{"params": fast, "lr": rate}, {"params": slow, "lr": rate / 3}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [rate, rate / 3], total_steps=steps, pct_start=0.08)
    smooth, tell = np.zeros(2), Teller(log)
    for step, batch in zip(range(steps), batches("train", seed + 1, 16, SHAPES), strict=False):
        rng = scene_rng("train", 901, seed, step)
        count = int(rng.choice([1, 2, 3, 4, 6, 8]))
        asked = [phrases_for(item, count, rng) for item in batch]
        labels = [targets_for(item, words_) for item, words_ in zip(batch, asked, strict=True)]
        if not any(len(label["class_labels"]) for label in labels):
            continue
        text = words([" . ".join(a) + " ." for a in asked], return_tensors="pt")
        outputs = model(pixel_values=torch.from_numpy(to_tensor(batch, MEAN, STD)), labels=labels, **text)
        dense = dense_loss(outputs, batch, asked, labels)
        optimizer.zero_grad()
        torch.autograd.backward(outputs.loss + dense)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        schedule.step()
        losses = np.array([outputs.loss.item(), dense.item()])
        smooth = losses if not smooth.any() else 0.98 * smooth + 0.02 * losses
        tell(step, loss=smooth[0], dense=smooth[1])
        if step % 500 == 499:
            log.info("step %d: %s", step + 1, evaluate(model, words))
            save_half(model, out)


@torch.inference_mode()
def evaluate(model: GroundingDinoForObjectDetection, words: BertTokenizerFast, count: int = 4) -> dict[str, float]:
    """Recall at IoU 0.5 and score 0.3 of what is there, and boxes of what is not there, per picture (val seeds)."""
    model.eval()
    found = total = wrong = pictures = 0
    overlap = 0.0
    for step, batch in zip(range(count), batches("val", 7, 24, SHAPES), strict=False):
        rng = scene_rng("val", 901, 7, step)
        asked = [phrases_for(item, 4, rng) for item in batch]
        text = words([" . ".join(a) + " ." for a in asked], return_tensors="pt")
        outputs = model(pixel_values=torch.from_numpy(to_tensor(batch, MEAN, STD)), **text)
        scores = outputs.logits[:, :, [1 + 2 * i for i in range(4)]].sigmoid()
        for item, words_, score, boxes in zip(batch, asked, scores, outputs.pred_boxes, strict=True):
            target = targets_for(item, words_)
            best = score.max(dim=0)
            there = dict(zip(target["class_labels"].tolist(), target["boxes"], strict=True))
            for place in range(4):
                if place in there:
                    total += 1
                    iou = box_iou(boxes[best.indices[place]], there[place])
                    found += int(best.values[place] > 0.3 and iou > 0.5)
                    overlap += iou
                else:
                    wrong += int(best.values[place] > 0.3)
            pictures += 1
    model.train()
    return {"recall": found / total, "iou": overlap / total, "wrong_per_picture": wrong / pictures}


def box_iou(one: torch.Tensor, two: torch.Tensor) -> float:
    """IoU of two boxes given as centre and size."""
    low = torch.maximum(one[:2] - one[2:] / 2, two[:2] - two[2:] / 2)
    high = torch.minimum(one[:2] + one[2:] / 2, two[:2] + two[2:] / 2)
    inter = (high - low).clamp(min=0).prod()
    return float(inter / (one[2:].prod() + two[2:].prod() - inter))


def main() -> None:
    options = begin(__doc__, cells=1300, steps=3000, rate=3e-4, seed=1)  # `cells`: steps of the first stage
    words = tokenizer(options.out)
    model = build(len(words))
    log.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    pretrain(model.model.backbone.conv_encoder.model, options.cells, options.seed)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 228})
    GroundingDinoProcessor(images, words).save_pretrained(options.out)
    train(model, words, options.out, options.steps, options.seed, options.rate)
    log.info("%s", evaluate(model, words, 20))
    save_half(model, options.out)


if __name__ == "__main__":
    main()
