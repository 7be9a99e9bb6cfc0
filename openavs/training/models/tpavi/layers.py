"""TPAVI's layers: neck, audio-visual interaction, decoder and head (AVSBench, arXiv 2207.05042).

Frames of all clips are packed: M = the frames that are present, whatever their clips' lengths, so no layer ever sees
padding. Only the interaction looks across frames, and it is told which clip each belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

DILATIONS = (3, 6, 12, 18)


@dataclass(frozen=True, eq=False)
class FrameGroups:
    """Which clip each packed frame belongs to: `member` float `[B, M]` of 0 and 1, `index` int64 `[M]`."""

    member: Tensor
    index: Tensor

    @classmethod
    def of(cls, present: Tensor) -> FrameGroups:
        """From `present` bool `[B, T]`, for frames packed by `frames[present]`."""
        index = present.nonzero()[:, 0]
        rows = torch.arange(len(present), device=present.device)[:, None]
        return cls((rows == index).to(torch.float32), index)


class Neck(nn.Module):
    """A map `[M, C, h, w]` to `[M, channels, h, w]`: the sum of four 3 x 3 convolutions of growing dilation."""

    def __init__(self, incoming: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(incoming, channels, 3, padding=d, dilation=d) for d in DILATIONS)
        for conv in self.convs:
            nn.init.normal_(conv.weight, 0.0, 0.01)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        return torch.stack([conv(maps) for conv in self.convs]).sum(dim=0)


class Interaction(nn.Module):
    """Temporal pixel-wise audio-visual interaction, dot mode.

    Each of a clip's N = T h w pixels attends all of them, the affinity of two being a dot product of the one's picture
    and the other's sound, divided by N. Without a softmax the product can be taken in another order: first the sum over
    all pixels of sound times value, a c x c matrix per clip, then its product with each pixel. That is the same number
    with memory linear in N; and since the sound is one vector per frame, the values are summed per frame first.
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
        nn.init.zeros_(self.bn.weight)  # at the start only the picture is seen
        nn.init.zeros_(self.bn.bias)

    def forward(self, maps: Tensor, audio: Tensor, clips: FrameGroups) -> tuple[Tensor, Tensor]:
        """Maps `[M, c, h, w]` and features `[M, 128]` to new maps and the aligned audio `[M, c]`."""
        heard = self.align(audio)
        mixed = self.out(self.attend(maps, heard, clips))
        new = self.norm((maps + self.bn(mixed)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return new, heard

    def attend(self, maps: Tensor, heard: Tensor, clips: FrameGroups) -> Tensor:
        """The attended values `[M, inner, h, w]`, of `maps` and the aligned audio `[M, c]`."""
        theta, values = self.theta(maps), self.g(maps).sum(dim=(2, 3))
        sound = self.phi(heard[:, :, None, None])[:, :, 0, 0]
        products = torch.einsum("mc,md->mcd", sound, values).flatten(1)
        member = clips.member.to(products.dtype)
        pixels = member.sum(dim=1) * maps.shape[-2] * maps.shape[-1]
        summed = (member @ products) / pixels[:, None]
        matrix = summed.reshape(len(summed), theta.shape[1], -1)[clips.index]
        return torch.einsum("mchw,mcd->mdhw", theta, matrix)


class Residual(nn.Module):
    """Two convolutions beside a skip. The skip carries ReLU(x), as the published model's in-place ReLU makes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        positive = maps.relu()
        refined: Tensor = self.conv2(self.conv1(positive).relu())
        return refined + positive


class Fusion(nn.Module):
    """One step of the decoder: adds a finer map to what comes from below and doubles the size."""

    def __init__(self, channels: int, first: bool = False) -> None:
        super().__init__()
        self.beside = Residual(channels)
        self.refine = Residual(channels)
        if first:  # nothing lies beside the coarsest map; the published model has these weights and never uses them
            self.beside.requires_grad_(False)

    def forward(self, maps: Tensor, finer: Tensor | None = None) -> Tensor:
        if finer is not None:
            maps = maps + self.beside(finer)
        return functional.interpolate(self.refine(maps), scale_factor=2.0, mode="bilinear", align_corners=True)


class Head(nn.Module):
    """Maps at half size to logits `[M, classes, H, W]`."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(channels // 2, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, classes, 1)

    def forward(self, maps: Tensor) -> Tensor:
        doubled = functional.interpolate(self.conv1(maps), scale_factor=2.0, mode="bilinear", align_corners=False)
        logits: Tensor = self.conv3(self.conv2(doubled).relu())
        return logits


class Decoder(nn.Module):
    """Four maps, finest first, to logits at the picture's size."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(Fusion(channels, first=stage == 3) for stage in range(4))
        self.head = Head(channels, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        path = self.paths[3](maps[3])
        for stage in (2, 1, 0):
            path = self.paths[stage](path, maps[stage])
        logits: Tensor = self.head(path)
        return logits
