"""Students that score every pixel of a frame: their options, checks, losses and predictions.

A subclass computes logits at the size of the frames: one channel for binary masks (S4, MS3), or one per class (AVSS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from openavs.errors import InputError
from openavs.evaluation.datasets.base import Task
from openavs.models.hub import resolve
from openavs.training.base import (
    InstanceMask,
    Student,
    StudentBatch,
    StudentPrediction,
    TransformConfig,
    resize_to_original,
)
from openavs.training.models.backbones import make_backbone


@dataclass(frozen=True)
class DenseConfig:
    """Settings of every student of this kind (`model` of a training recipe).

    Attributes:
        backbone: a name of `models/backbones.py`.
        side: side of the square frames in pixels, a multiple of 32.
        classes: all class names, background first; empty for binary masks.
        drop_path: share of a PVT's blocks that are dropped in training.
        crop: train on centered squares instead of stretched frames, as published for AVSS.
        flip: mirror clips at random in training.
        frames: frames that are processed together: sampled for a training step, with at least one label; consecutive
            for prediction. None for all, as published. With 1 each frame has its own second of audio only, which suits
            clips in which sources start and stop.
    """

    backbone: str = "pvt_v2_b5"
    side: int = 224
    classes: tuple[str, ...] = ()
    drop_path: float = 0.0
    crop: bool = False
    flip: bool = False
    frames: int | None = None

    @property
    def outputs(self) -> int:
        """Number of channels of the logits."""
        return max(1, len(self.classes))


class DenseStudent(Student):
    """A student with a backbone and logits for every pixel.

    Args:
        config: the settings.
        network: the backbone; None for the one that `config.backbone` names.
    """

    def __init__(self, config: Any, network: nn.Module | None = None) -> None:
        super().__init__(config)
        if config.side % 32 or config.side <= 0:
            raise InputError(f"'model.side' must be a multiple of 32, not {config.side}")
        if config.frames is not None and config.frames < 1:
            raise InputError(f"'model.frames' is at least 1, not {config.frames}")
        if len(config.classes) == 1:
            raise InputError("'model.classes' names the background and at least one class, or nothing for binary masks")
        self.backbone = make_backbone(config.backbone, config.drop_path) if network is None else network

    @classmethod
    def adapt_config(cls, settings: dict[str, Any], task: Task, classes: Sequence[str]) -> dict[str, Any]:
        """Take the classes of the benchmark, unless the settings have their own."""
        return settings if task == "binary" else {"classes": list(classes), **settings}

    def check(self, task: Task, classes: Sequence[str]) -> None:
        """Require a binary head for binary masks, and the benchmark's classes in their order for label maps."""
        wanted = () if task == "binary" else tuple(classes)
        if self.config.classes != wanted:
            have = f"a head of {len(self.config.classes)} classes" if self.config.classes else "a binary head"
            need = f"one of its {len(wanted)} classes" if wanted else "a binary one"
            raise InputError(f"this {self.name} has {have} where the benchmark needs {need}; train another for it")

    def initialize(self, part: str, ref: str) -> None:
        """Initialize from ImageNet weights (`backbone`) or another such student (`student`), such as MS3 from S4."""
        if part != "backbone":
            return super().initialize(part, ref)
        from openavs.models.hub import load_pretrained

        fresh: Any = self.backbone
        loaded = load_pretrained(
            type(fresh), resolve(ref, self.offline), torch.float32, "cpu", out_features=list(fresh.out_features)
        )
        fresh.load_state_dict(loaded.state_dict())
        return None

    def view(self, training: bool) -> TransformConfig:
        """Return the transforms: square frames, in training with crop and flip as configured."""
        if not training:
            return TransformConfig((self.config.side,), frames=self.config.frames)
        fit: Literal["crop", "stretch"] = "crop" if self.config.crop else "stretch"
        return TransformConfig((self.config.side,), fit, flip=self.config.flip, frames=self.config.frames)

    @torch.no_grad()
    def predict(self, batch: StudentBatch, classes: Sequence[str] | None) -> list[StudentPrediction]:
        """Return binary masks with probabilities, or one class per pixel."""
        self.check("semantic" if classes else "binary", classes or ())
        logits, clip_of = self(batch).logits, batch.present.nonzero()[:, 0]
        padded = (batch.frames.shape[-2], batch.frames.shape[-1])
        predictions = []
        for clip, (inner, size) in enumerate(zip(batch.inner, batch.sizes, strict=True)):
            own = logits[clip_of == clip].float()
            scores = own.sigmoid() if classes is None else own.softmax(dim=1)
            maps = resize_to_original(scores, inner, padded, size).cpu().numpy()
            predictions.append(_binary(maps[:, 0]) if classes is None else _semantic(maps, classes))
        return predictions


def labeled_rows(values: Tensor, decoded: Tensor, batch: StudentBatch) -> Tensor:
    """Return the values of the labeled frames, in the order of their masks.

    Args:
        values: `[D, ...]` of the decoded frames.
        decoded: bool `[M]`, the decoded ones of the present frames.
        batch: the clips.
    """
    return values[batch.labeled[batch.present][decoded]]


def has_batch_norm(network: nn.Module) -> bool:
    """Return True if frames of a batch change each other's training output, through the statistics of batch norms."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def _binary(probability: np.ndarray[Any, np.dtype[np.float32]]) -> StudentPrediction:
    frames = []
    for frame in probability:
        mask = frame > 0.5
        frames.append((InstanceMask(mask, float(frame[mask].mean())),) if mask.any() else ())
    return StudentPrediction(tuple(frames), probability)


def _semantic(probability: np.ndarray[Any, np.dtype[np.float32]], classes: Sequence[str]) -> StudentPrediction:
    """Return the best class of each pixel; the score of a class is the mean probability of its pixels in a frame."""
    frames = []
    for frame in probability:
        best = frame.argmax(axis=0)
        present = [int(label) for label in np.unique(best) if label]
        frames.append(tuple(InstanceMask(best == c, float(frame[c][best == c].mean()), classes[c]) for c in present))
    return StudentPrediction(tuple(frames))


def binary_loss(logits: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """Return the binary cross-entropy, averaged over pixels and labeled frames.

    Args:
        logits: `[L, 1, H, W]` of the labeled frames.
        masks: `[L, H, W]`, 0 and 1.
        weight: `[L]`, weight of each frame; 1 for all is the published loss.
    """
    pixels = functional.binary_cross_entropy_with_logits(logits[:, 0].float(), masks.float(), reduction="none")
    return weighted_mean(pixels.mean(dim=(1, 2)), weight)


def semantic_loss(logits: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """Return the cross-entropy of `[L, classes, H, W]`, averaged over pixels and labeled frames."""
    pixels = functional.cross_entropy(logits.float(), masks.long(), reduction="none")
    return weighted_mean(pixels.mean(dim=(1, 2)), weight)


def weighted_mean(frames: Tensor, weight: Tensor) -> Tensor:
    """Return the mean of values of frames `[L]` by their weights `[L]`."""
    return (frames * weight).sum() / weight.sum().clamp(min=1e-6)
