"""Train the tiny SAM: `python -m scripts.train_tiny.sam --out FOLDER`.

Two stages. First the image encoder is trained alone to separate objects from background densely. Then the whole model
is trained to predict masks of boxes; the dense loss remains, because it teaches the encoder more per step than a few
boxes. All boxes of an image are used in one step, which encodes it once, and are jittered like those of a detector.

By default transformers samples the frequencies of SAM's positional encoding with a standard deviation of half the
hidden size instead of 1, as in the original. Neighboring cells then have unrelated encodings, and a decoder with random
initial weights never learns the inside of a box. The configuration sets it to 1.
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
from transformers import SamConfig, SamImageProcessorPil, SamModel, SamProcessor

from openavs.synthetic.scenes import scene_rng
from openavs.synthetic.shapes import Rng
from scripts.train_tiny.common import StepLogger, parse_arguments, save_half
from scripts.train_tiny.image_data import LabeledImage, batches, to_tensor

logger = logging.getLogger(__name__)

Boxes = npt.NDArray[np.floating[Any]]

SIDE, GRID = 128, 64  # input side, side of the low-resolution masks
SHAPES = ((128, 128), (128, 128), (96, 128), (128, 96), (72, 128))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build() -> SamModel:
    """Build a SAM of 4 transformer blocks of width 128 on patches of 8 pixels."""
    width = 96
    vision = {
        "hidden_size": 128,
        "output_channels": width,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 8,
        "window_size": 8,
        "global_attn_indexes": [1, 3],
        "mlp_dim": 512,
        "num_pos_feats": width // 2,
        "scale": 1.0,
    }
    prompts = {"hidden_size": width, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 8}
    decoder = {
        "hidden_size": width,
        "mlp_dim": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "iou_head_hidden_dim": 96,
    }
    return SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))


def pixels(batch: list[LabeledImage]) -> torch.Tensor:
    """Return normalized pixel values, zero-padded on the right and below to `[B, 3, 128, 128]`."""
    values = torch.from_numpy(to_tensor(batch, MEAN, STD))
    return nn.functional.pad(values, (0, SIDE - values.shape[3], 0, SIDE - values.shape[2]))


def coverage(mask: np.ndarray) -> torch.Tensor:
    """Return the covered share `[64, 64]` of each cell of the mask grid by a mask `[h, w]`."""
    full = np.zeros((SIDE, SIDE), dtype=np.float32)
    full[: mask.shape[0], : mask.shape[1]] = mask
    step = SIDE // GRID
    return torch.from_numpy(full.reshape(GRID, step, GRID, step).mean(axis=(1, 3)))


def dense_loss(features: torch.Tensor, head: nn.Module, batch: list[LabeledImage]) -> tuple[torch.Tensor, float]:
    """Return the loss of the foreground, at 4 x 4 cells per token, and its IoU."""
    logits = head(features)[:, 0]
    target = torch.stack([coverage(item.owners > 0) for item in batch])
    right, union = (logits > 0) & (target > 0.5), (logits > 0) | (target > 0.5)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, target) + dice(logits, target).mean()
    return loss, right.sum().item() / union.sum().item()


def dense_head(model: SamModel) -> nn.Module:
    """Build the head that predicts the foreground from the image embedding; it is discarded after training."""
    return nn.Sequential(nn.Conv2d(model.config.vision_config.output_channels, 16, 1), nn.PixelShuffle(4))


def pretrain(model: SamModel, head: nn.Module, steps: int, seed: int) -> None:
    """The encoder alone, on figure and ground."""
    rate = 1.5e-3
    parameters = [*model.vision_encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    smooth, log_step = 0.0, StepLogger(logger, "dense")
    for step, batch in zip(range(steps), batches("train", seed, 16, SHAPES[:1]), strict=False):
        loss, iou = dense_loss(model.vision_encoder(pixels(batch))[0], head, batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        smooth = 0.98 * smooth + 0.02 * iou
        log_step(step, loss=loss.item(), IoU=smooth)


def dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the dice loss of each mask, over the last two dimensions."""
    p = logits.sigmoid()
    overlap = (p * target).sum((-2, -1))
    return 1 - (2 * overlap + 1) / (p.sum((-2, -1)) + target.sum((-2, -1)) + 1)


def targets_for(item: LabeledImage, rng: Rng, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Return jittered boxes `[count, 4]` in pixels and masks `[count, 64, 64]`; objects are repeated to fill."""
    tight = item.boxes()
    numbers = [i for i, box in enumerate(tight.tolist()) if not math.isnan(box[0])]
    chosen = [numbers[i % len(numbers)] for i in range(count)]
    height, width = item.owners.shape
    boxes = np.stack([_jitter(tight[i], rng) for i in chosen]).clip(0, [width, height, width, height])
    return torch.from_numpy(boxes.astype(np.float32)), torch.stack([coverage(item.owners == i + 1) for i in chosen])


def _jitter(box: Boxes, rng: Rng) -> Boxes:
    """Move each side like the error of a detector: a few percent of the box, sometimes more."""
    spread = 0.08 if rng.random() < 0.2 else 0.035
    extent = np.tile(box[2:] - box[:2], 2)
    jittered: Boxes = box + rng.normal(0, spread, 4) * extent
    return jittered


def train(model: SamModel, head: nn.Module, out: Path, steps: int, seed: int, rate: float) -> None:
    """Train masks of boxes: 5 x cross-entropy + dice + error of the predicted IoU; save every 500 steps."""
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    smooth, log_step = 0.0, StepLogger(logger)
    for step, batch in zip(range(steps), batches("train", seed + 1, 12, SHAPES), strict=False):
        batch = [item for item in batch if not np.isnan(item.boxes()).all()]
        rng = scene_rng("train", 902, seed, step)
        boxes, masks = (torch.stack(x) for x in zip(*(targets_for(item, rng) for item in batch), strict=True))
        features = model.vision_encoder(pixels(batch))[0]
        outputs = model(image_embeddings=features, input_boxes=boxes, multimask_output=False)
        logits, estimate = outputs.pred_masks[:, :, 0], outputs.iou_scores[:, :, 0]
        with torch.no_grad():
            hit, near = (logits > 0), masks > 0.5
            iou = (hit & near).sum((-2, -1)) / (hit | near).sum((-2, -1)).clamp(min=1)
        entropy = nn.functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((-2, -1))
        loss = (5 * entropy + dice(logits, masks)).mean() + nn.functional.mse_loss(estimate, iou)
        loss = loss + dense_loss(features, head, batch)[0]
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        smooth = iou.mean().item() if not smooth else 0.98 * smooth + 0.02 * iou.mean().item()
        log_step(step, loss=loss.item(), IoU=smooth)
        if step % 500 == 499:
            save_half(model, out)


def main() -> None:
    """Train and save the model."""
    options = parse_arguments(__doc__, dense=1000, steps=2800, rate=1e-3, seed=2)  # `dense`: steps of the first stage
    model = build()
    logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    images = SamImageProcessorPil(
        size={"longest_edge": SIDE},
        pad_size={"height": SIDE, "width": SIDE},
        mask_size={"longest_edge": GRID},
        mask_pad_size={"height": GRID, "width": GRID},
        image_mean=MEAN,
        image_std=STD,
    )
    SamProcessor(images).save_pretrained(options.out)
    head = dense_head(model)
    pretrain(model, head, options.dense, options.seed)
    train(model, head, options.out, options.steps, options.seed, options.rate)
    save_half(model, options.out)


if __name__ == "__main__":
    main()
