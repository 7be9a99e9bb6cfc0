"""Losses of TPAVI: of masks, and AVM, which aligns masked features with the audio (AVSBench, eq. 6 to 8)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def binary_loss(logits: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """Return the binary cross-entropy, averaged over pixels and labeled frames.

    Args:
        logits: `[L, 1, H, W]` of the labeled frames.
        masks: `[L, H, W]`, 0 and 1.
        weight: `[L]`, weight of each frame; 1 for all is the published loss.
    """
    pixels = functional.binary_cross_entropy_with_logits(logits[:, 0].float(), masks.float(), reduction="none")
    return _weighted_mean(pixels.mean(dim=(1, 2)), weight)


def semantic_loss(logits: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """Return the cross-entropy of `[L, classes, H, W]`, averaged over pixels and labeled frames."""
    pixels = functional.cross_entropy(logits.float(), masks.long(), reduction="none")
    return _weighted_mean(pixels.mean(dim=(1, 2)), weight)


def _weighted_mean(frames: Tensor, weight: Tensor) -> Tensor:
    return (frames * weight).sum() / weight.sum().clamp(min=1e-6)


def avm_loss(logits: Tensor, maps: Sequence[Tensor], audio: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Return the mean over stages of KL(softmax(audio) || softmax(pooled masked features)).

    The pooled features are the mean over all pixels of the stage's map times the mask. Binary: the mask is the sigmoid
    of the logits averaged to the stage's size, and the divergence is summed over all frames and channels, as published
    (so it grows with the batch). Classes: the mask is the share of pixels that are not background, which has no
    gradient, and the divergence is the weighted mean over frames: an unlabeled frame has weight 0, as published.

    Args:
        logits: `[M, classes, H, W]`.
        maps: by stage, `[M, c, h, w]` after a ReLU.
        audio: by stage, the aligned audio `[M, c]`.
        weight: `[M]`, the weight of each frame in the loss of classes; 1 for labeled and 0 for unlabeled frames is
            the published loss. Binary masks do not use it.
    """
    binary = logits.shape[1] == 1
    foreground = logits.float() if binary else (logits.argmax(dim=1, keepdim=True) > 0).float()
    stages = []
    for stage, aligned in zip(maps, audio, strict=True):
        pooled = functional.adaptive_avg_pool2d(foreground, (stage.shape[-2], stage.shape[-1]))
        mask = pooled.sigmoid() if binary else pooled
        masked = (stage.float() * mask).mean(dim=(2, 3))
        divergence = functional.kl_div(
            masked.log_softmax(dim=1), aligned.float().log_softmax(dim=1), reduction="none", log_target=True
        ).sum(dim=1)
        stages.append(divergence.sum() if binary else _weighted_mean(divergence, weight))
    return torch.stack(stages).mean()
