"""A custom student: a U-Net whose coarsest map is scaled and shifted by the audio of the frame (FiLM).

    openavs train ./examples/student/unet_student.py:UNetStudent --root data/s4 --benchmark s4 --out runs/unet

Installed (`pip install ./examples/student`), it is the student `unet` everywhere:

    openavs train unet --root data/s4 --benchmark s4 --out runs/unet
    openavs self-train unet --root data/s4 --benchmark s4 --pipeline tiny --out runs/st
    openavs evaluate s4 --root data/s4 --pipeline student:runs/unet --out runs/unet-test

`DenseStudent` has the checks, the transforms of the input and the prediction of students that score every pixel; this
file adds the layers, one pass and one loss. Perez et al., "FiLM" (arXiv 1709.07871); Ronneberger et al., "U-Net" (arXiv
1505.04597).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from openavs.training.base import AUDIO_SIZE, StudentBatch, normalize_images
from openavs.training.models.backbones import backbone
from openavs.training.models.dense import DenseConfig, DenseStudent, binary_loss, labeled_rows, semantic_loss


@dataclass(frozen=True)
class UNetConfig(DenseConfig):
    """Options, beside those of `DenseConfig`; each is a key of `model` in a training recipe.

    Attributes:
        channels: channels of the maps of the decoder.
    """

    backbone: str = "resnet_tiny"
    side: int = 96
    channels: int = 32


@dataclass(frozen=True, eq=False)
class UNetOutput:
    """Input of `loss` and `predict`, for the M present frames of a batch."""

    logits: Tensor  # [M, outputs, H, W]
    decoded: Tensor  # bool [M], True: every frame has logits


class UNetStudent(DenseStudent):
    """The student; its name is written into the folders of its weights."""

    name = "unet"
    Config = UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)  # builds `self.backbone`, whose maps have strides 4, 8, 16 and 32
        width = config.channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in backbone(config.backbone).channels)
        self.refine = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.film = nn.Linear(AUDIO_SIZE, 2 * width)
        self.head = nn.Conv2d(width, config.outputs, 1)

    def forward(self, batch: StudentBatch) -> UNetOutput:
        """Compute the logits of the present frames; padding is never read."""
        frames, audio = batch.frames[batch.present], batch.audio[batch.present]
        maps = [layer(level) for layer, level in zip(self.lateral, self.features(frames), strict=True)]
        scale, shift = self.film(audio)[:, :, None, None].chunk(2, dim=1)
        path = maps[3] * (1.0 + scale) + shift
        for stage in (3, 2, 1, 0):
            path = self.refine[stage](path).relu()
            if stage:
                path = functional.interpolate(path, scale_factor=2.0, mode="nearest") + maps[stage - 1]
        size = frames.shape[-2:]
        logits = functional.interpolate(self.head(path), size=size, mode="bilinear", align_corners=False)
        return UNetOutput(logits, torch.ones(len(frames), dtype=torch.bool, device=frames.device))

    def features(self, frames: Tensor) -> list[Tensor]:
        """Return the maps of the backbone of uint8 frames `[M, 3, H, W]`, finest first."""
        return list(self.backbone(normalize_images(frames)).feature_maps)

    def loss(self, output: UNetOutput, batch: StudentBatch) -> dict[str, Tensor]:
        """Return the loss of the labeled frames: cross-entropy of classes, or of binary masks."""
        masks, weight = batch.masks[batch.labeled], batch.weight[batch.labeled]
        if not len(masks):  # no labels in this batch: a zero with gradients
            return {"loss": output.logits.sum() * 0.0}
        logits = labeled_rows(output.logits, output.decoded, batch)
        loss = semantic_loss if self.config.classes else binary_loss
        return {"loss": loss(logits, masks, weight)}
