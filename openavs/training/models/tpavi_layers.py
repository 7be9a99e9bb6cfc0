"""Layers of TPAVI: neck, audio-visual interaction, decoder and head (AVSBench, arXiv 2207.05042).

The M present frames of all clips are packed into one axis, so no layer processes padding. Only the interaction mixes
frames, those of the same clip (`FrameGroups`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

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
