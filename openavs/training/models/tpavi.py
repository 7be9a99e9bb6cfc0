"""TPAVI, the baseline of AVSBench: pixels attend to the audio of the whole clip, and a decoder predicts masks.

Zhou et al., "Audio-Visual Segmentation" (arXiv 2207.05042). Binary masks (S4, MS3) or one class per pixel (AVSS).
Clips have any number of frames; the published AVSS code processes a clip of ten frames as two of five.

The M present frames of all clips are packed into one axis, so no layer processes padding. Only the interaction mixes
frames, those of the same clip (`FrameGroups`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from openavs.training.base import AUDIO_SIZE, StudentBatch, normalize_images
from openavs.training.models.backbones import backbone
from openavs.training.models.dense import (
    DenseConfig,
    DenseStudent,
    binary_loss,
    labeled_rows,
    semantic_loss,
    weighted_mean,
)

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
class TpaviConfig(DenseConfig):
    """Settings of TPAVI, beside those of `DenseConfig`.

    Attributes:
        channels: channels of the maps.
        inner: channels of the interaction.
        avm: weight of the AVM loss; published: 0 for S4, 0.5 otherwise.
    """

    channels: int = 256
    inner: int = 128
    avm: float = 0.0


@dataclass(frozen=True, eq=False)
class TpaviOutput:
    """Output for the M present frames of a batch, of which D are decoded."""

    logits: Tensor  # [D, classes, H, W]
    decoded: Tensor  # bool [M]
    maps: list[Tensor]  # by stage, [M, c, h, w]
    audio: list[Tensor]  # by stage, the aligned audio [M, c]
    clips: FrameGroups


class Tpavi(DenseStudent):
    """The TPAVI student; see `TpaviConfig`."""

    name = "tpavi"
    Config = TpaviConfig

    def __init__(self, config: TpaviConfig) -> None:
        super().__init__(config)
        channels = backbone(config.backbone).channels
        self.necks = nn.ModuleList(Neck(incoming, config.channels) for incoming in channels)
        audio_bias = not config.classes  # as published: AVSS's model has none
        self.interactions = nn.ModuleList(
            Interaction(config.channels, config.inner, AUDIO_SIZE, audio_bias) for _ in channels
        )
        self.decoder = Decoder(config.channels, config.outputs)

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
        masks, weight = batch.masks[batch.labeled], batch.weight[batch.labeled]
        loss_function = semantic_loss if self.config.classes else binary_loss
        if len(masks):
            mask_loss = loss_function(labeled_rows(output.logits, output.decoded, batch), masks, weight)
        else:
            mask_loss = output.logits.sum() * 0.0  # no labels: a zero with gradients
        if not self.config.avm:
            return {"loss": mask_loss}
        # In the published model the decoder's in-place ReLU has been applied to the maps at this point.
        maps = [stage.relu() for stage in output.maps]
        avm = avm_loss(output.logits, maps, output.audio, (batch.weight * batch.labeled)[batch.present])
        return {"loss": mask_loss + self.config.avm * avm, "mask": mask_loss, "avm": avm}


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
        stages.append(divergence.sum() if binary else weighted_mean(divergence, weight))
    return torch.stack(stages).mean()
