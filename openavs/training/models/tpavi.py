"""TPAVI, the baseline of AVSBench: pixels attend to the audio of the whole clip, and a decoder predicts masks.

Zhou et al., "Audio-Visual Segmentation" (arXiv 2207.05042). Binary masks (S4, MS3) or one class per pixel (AVSS).
Clips have any number of frames; the published AVSS code processes a clip of ten frames as two of five.

The M present frames of all clips are packed into one axis, so no layer processes padding. Only the interaction mixes
frames, those of the same clip (`FrameGroups`).
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
    AUDIO_SIZE,
    InstanceMask,
    Student,
    StudentBatch,
    StudentPrediction,
    TransformConfig,
    normalize_images,
    resize_to_original,
)
from openavs.training.models.backbones import backbone, make_backbone

DILATIONS = (3, 6, 12, 18)
"""Dilations of the convolutions of a neck."""


@dataclass(frozen=True, eq=False)
class FrameGroups:
    """The clips of M packed frames."""

    member: Tensor  # float [B, M], 1 where a frame belongs to a clip
    index: Tensor  # int64 [M], the clip of each frame

    @classmethod
    def of(cls, present: Tensor) -> FrameGroups:
        """Build the groups of frames packed by `frames[present]`; `present` is bool `[B, T]`."""
        index = present.nonzero()[:, 0]
        rows = torch.arange(len(present), device=present.device)[:, None]
        return cls((rows == index).to(torch.float32), index)


class Neck(nn.Module):
    """Sum of four dilated 3 x 3 convolutions: `[M, C, h, w]` to `[M, channels, h, w]`."""

    def __init__(self, incoming: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(incoming, channels, 3, padding=d, dilation=d) for d in DILATIONS)
        for conv in self.convs:
            nn.init.normal_(conv.weight, 0.0, 0.01)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        """Return the sum of the convolutions."""
        return torch.stack([conv(maps) for conv in self.convs]).sum(dim=0)


class Interaction(nn.Module):
    """Temporal pixel-wise audio-visual interaction, dot mode.

    Each of a clip's N = T h w pixels attends to all of them; the affinity of two pixels is the dot product of the image
    feature of one and the audio feature of the other, divided by N. There is no softmax, so the products can be
    reordered: first the sum over all pixels of audio times value, a c x c matrix per clip, then its product with each
    pixel. The result is the same with memory linear in N. The audio is one vector per frame, so values are summed per
    frame first.
    """

    def __init__(self, channels: int, inner: int, audio: int, audio_bias: bool = True) -> None:
        super().__init__()
        self.align = nn.Linear(audio, channels, bias=audio_bias)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.norm = nn.LayerNorm(channels)
        nn.init.zeros_(self.bn.weight)  # at initialization the audio has no effect
        nn.init.zeros_(self.bn.bias)

    def forward(self, maps: Tensor, audio: Tensor, clips: FrameGroups) -> tuple[Tensor, Tensor]:
        """Return new maps and the aligned audio `[M, c]` for maps `[M, c, h, w]` and audio features `[M, 128]`."""
        aligned = self.align(audio)
        attended = self.out(self.attend(maps, aligned, clips))
        new = self.norm((maps + self.bn(attended)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return new, aligned

    def attend(self, maps: Tensor, aligned: Tensor, clips: FrameGroups) -> Tensor:
        """Return the attended values `[M, inner, h, w]` of maps and the aligned audio `[M, c]`."""
        theta, values = self.theta(maps), self.g(maps).sum(dim=(2, 3))
        phi = self.phi(aligned[:, :, None, None])[:, :, 0, 0]
        products = torch.einsum("mc,md->mcd", phi, values).flatten(1)
        member = clips.member.to(products.dtype)
        pixels = member.sum(dim=1) * maps.shape[-2] * maps.shape[-1]
        summed = (member @ products) / pixels[:, None]
        matrix = summed.reshape(len(summed), theta.shape[1], -1)[clips.index]
        return torch.einsum("mchw,mcd->mdhw", theta, matrix)


class Residual(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return `conv(relu(conv(relu(x)))) + relu(x)`."""
        # The published model's ReLU is in-place, so its skip connection carries ReLU(x) instead of x.
        positive = maps.relu()
        refined: Tensor = self.conv2(self.conv1(positive).relu())
        return refined + positive


class Fusion(nn.Module):
    """Stage of the decoder: adds a finer map and doubles the size."""

    def __init__(self, channels: int, first: bool = False) -> None:
        super().__init__()
        self.beside = Residual(channels)
        self.refine = Residual(channels)
        if first:  # the coarsest stage adds no map; the published model has these weights without using them
            self.beside.requires_grad_(False)

    def forward(self, maps: Tensor, finer: Tensor | None = None) -> Tensor:
        """Return maps `[M, c, 2 h, 2 w]` for maps `[M, c, h, w]` of the coarser stage and the map of this stage."""
        if finer is not None:
            maps = maps + self.beside(finer)
        return functional.interpolate(self.refine(maps), scale_factor=2.0, mode="bilinear", align_corners=True)


class Head(nn.Module):
    """Head: maps at half the size to logits."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(channels // 2, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, classes, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits `[M, classes, H, W]` for maps `[M, c, H / 2, W / 2]`."""
        doubled = functional.interpolate(self.conv1(maps), scale_factor=2.0, mode="bilinear", align_corners=False)
        logits: Tensor = self.conv3(self.conv2(doubled).relu())
        return logits


class Decoder(nn.Module):
    """Decoder: four maps, finest first, to logits at the size of the frames."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(Fusion(channels, first=stage == 3) for stage in range(4))
        self.head = Head(channels, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits `[M, classes, H, W]` for maps at strides 4, 8, 16 and 32."""
        path = self.paths[3](maps[3])
        for stage in (2, 1, 0):
            path = self.paths[stage](path, maps[stage])
        logits: Tensor = self.head(path)
        return logits


@dataclass(frozen=True)
class TpaviConfig:
    """Settings of TPAVI (`model` of a training recipe).

    Attributes:
        backbone: a name of `models/backbones.py`.
        side: side of the square frames in pixels, a multiple of 32.
        channels: channels of the maps.
        inner: channels of the interaction.
        classes: all class names, background first; empty for binary masks.
        avm: weight of the AVM loss; published: 0 for S4, 0.5 otherwise.
        drop_path: share of a PVT's blocks that are dropped in training.
        crop: train on centered squares instead of stretched frames, as published for AVSS.
        flip: mirror clips at random in training.
        frames: frames that are processed together: sampled for a training step, with at least one label; consecutive
            for prediction. None for all, as published. With 1 each frame has its own second of audio only, which suits
            clips in which sources start and stop.
    """

    backbone: str = "pvt_v2_b5"
    side: int = 224
    channels: int = 256
    inner: int = 128
    classes: tuple[str, ...] = ()
    avm: float = 0.0
    drop_path: float = 0.0
    crop: bool = False
    flip: bool = False
    frames: int | None = None


@dataclass(frozen=True, eq=False)
class TpaviOutput:
    """Output for the M present frames of a batch, of which D are decoded."""

    logits: Tensor  # [D, classes, H, W]
    decoded: Tensor  # bool [M]
    maps: list[Tensor]  # by stage, [M, c, h, w]
    audio: list[Tensor]  # by stage, the aligned audio [M, c]
    clips: FrameGroups


class Tpavi(Student):
    """The TPAVI student; see `TpaviConfig`."""

    name = "tpavi"
    Config = TpaviConfig

    def __init__(self, config: TpaviConfig) -> None:
        super().__init__(config)
        if config.side % 32 or config.side <= 0:
            raise InputError(f"'model.side' must be a multiple of 32, not {config.side}")
        if config.frames is not None and config.frames < 1:
            raise InputError(f"'model.frames' is at least 1, not {config.frames}")
        if len(config.classes) == 1:
            raise InputError("'model.classes' names the background and at least one class, or nothing for binary masks")
        channels = backbone(config.backbone).channels
        self.backbone = make_backbone(config.backbone, config.drop_path)
        self.necks = nn.ModuleList(Neck(incoming, config.channels) for incoming in channels)
        audio_bias = not config.classes  # as published: AVSS's model has none
        self.interactions = nn.ModuleList(
            Interaction(config.channels, config.inner, AUDIO_SIZE, audio_bias) for _ in channels
        )
        self.decoder = Decoder(config.channels, max(1, len(config.classes)))

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
            raise InputError(f"this TPAVI has {have} where the benchmark needs {need}; train another for it")

    def initialize(self, part: str, ref: str) -> None:
        """Initialize from ImageNet weights (`backbone`) or another TPAVI (`student`), such as MS3 from S4."""
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

    def forward(self, batch: StudentBatch) -> TpaviOutput:
        """Compute the maps of all present frames, and the logits of those that are needed."""
        clips = FrameGroups.of(batch.present)
        frames, audio = batch.frames[batch.present], batch.audio[batch.present]
        features = self.backbone(normalize_images(frames)).feature_maps
        maps, aligned = [], []
        for stage, neck, interaction in zip(features, self.necks, self.interactions, strict=True):
            new_maps, stage_audio = interaction(neck(stage), audio, clips)
            maps.append(new_maps)
            aligned.append(stage_audio)
        decoded = self._frames_to_decode(batch.labeled[batch.present])
        logits = self.decoder([stage[decoded] for stage in maps])
        return TpaviOutput(logits, decoded, maps, aligned, clips)

    def _frames_to_decode(self, labeled: Tensor) -> Tensor:
        """Return the frames to decode: in training without AVM the labeled ones only, a fifth on S4."""
        # The decoder processes each frame separately, so losses and gradients are the same.
        sparse = self.training and not self.config.avm and bool(labeled.any())
        return labeled if sparse else torch.ones_like(labeled)

    def loss(self, output: TpaviOutput, batch: StudentBatch) -> dict[str, Tensor]:
        """Return the mask loss, with AVM the sum of both and its terms."""
        labeled = batch.labeled[batch.present][output.decoded]
        masks, weight = batch.masks[batch.labeled], batch.weight[batch.labeled]
        loss_function = semantic_loss if self.config.classes else binary_loss
        if len(masks):
            mask_loss = loss_function(output.logits[labeled], masks, weight)
        else:
            mask_loss = output.logits.sum() * 0.0  # no labels: a zero with gradients
        if not self.config.avm:
            return {"loss": mask_loss}
        # In the published model the decoder's in-place ReLU has been applied to the maps at this point.
        maps = [stage.relu() for stage in output.maps]
        avm = avm_loss(output.logits, maps, output.audio, (batch.weight * batch.labeled)[batch.present])
        return {"loss": mask_loss + self.config.avm * avm, "mask": mask_loss, "avm": avm}

    @torch.no_grad()
    def predict(self, batch: StudentBatch, classes: Sequence[str] | None) -> list[StudentPrediction]:
        """Return binary masks with probabilities, or one class per pixel."""
        self.check("semantic" if classes else "binary", classes or ())
        output = self(batch)
        padded = (batch.frames.shape[-2], batch.frames.shape[-1])
        predictions = []
        for clip, (inner, size) in enumerate(zip(batch.inner, batch.sizes, strict=True)):
            logits = output.logits[output.clips.index == clip].float()
            scores = logits.sigmoid() if classes is None else logits.softmax(dim=1)
            maps = resize_to_original(scores, inner, padded, size).cpu().numpy()
            predictions.append(_binary(maps[:, 0]) if classes is None else _semantic(maps, classes))
        return predictions


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
