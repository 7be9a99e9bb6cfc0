"""Image backbones by name: PVT-v2 and ResNet of transformers, with maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PvtV2Backbone, PvtV2Config, ResNetBackbone, ResNetConfig

from openavs.errors import InputError
from openavs.utils.text import did_you_mean

STAGES = ["stage1", "stage2", "stage3", "stage4"]


@dataclass(frozen=True)
class Backbone:
    """A backbone: its class, its configuration, and its ImageNet weights on the hub, if any."""

    kind: str
    options: Mapping[str, Any]
    weights: str | None = None

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four maps."""
        return tuple(self.options["hidden_sizes"])


def _pvt(depths: tuple[int, ...], sizes: tuple[int, ...], ratios: tuple[int, ...], weights: str | None) -> Backbone:
    options = {"depths": depths, "hidden_sizes": sizes, "mlp_ratios": ratios, "num_attention_heads": (1, 2, 5, 8)}
    return Backbone("pvt_v2", options, weights)


def _resnet(depths: tuple[int, ...], sizes: tuple[int, ...], layer: str, first: int, weights: str | None) -> Backbone:
    options = {"depths": depths, "hidden_sizes": sizes, "layer_type": layer, "embedding_size": first}
    return Backbone("resnet", options, weights)


BACKBONES: Mapping[str, Backbone] = {
    "pvt_v2_b5": _pvt((3, 6, 40, 3), (64, 128, 320, 512), (4, 4, 4, 4), "hf:OpenGVLab/pvt_v2_b5"),
    "pvt_v2_b2": _pvt((3, 4, 6, 3), (64, 128, 320, 512), (8, 8, 4, 4), "hf:OpenGVLab/pvt_v2_b2"),
    "pvt_v2_b0": _pvt((2, 2, 2, 2), (32, 64, 160, 256), (8, 8, 4, 4), "hf:OpenGVLab/pvt_v2_b0"),
    "pvt_v2_tiny": _pvt((1, 1, 1, 1), (16, 32, 40, 64), (4, 4, 4, 4), None),
    "resnet50": _resnet((3, 4, 6, 3), (256, 512, 1024, 2048), "bottleneck", 64, "hf:microsoft/resnet-50"),
    "resnet18": _resnet((2, 2, 2, 2), (64, 128, 256, 512), "basic", 64, "hf:microsoft/resnet-18"),
    "resnet_tiny": _resnet((1, 1, 1, 1), (24, 48, 96, 128), "basic", 24, "openavs:tiny/resnet"),
}


def backbone(name: str) -> Backbone:
    """Return the backbone of a name; the InputError suggests the nearest."""
    if name not in BACKBONES:
        raise InputError(f"there is no backbone {name!r}; {did_you_mean(name, BACKBONES)}")
    return BACKBONES[name]


def make_backbone(name: str, drop_path: float = 0.0) -> nn.Module:
    """Build a backbone with random weights; its output has four `feature_maps`. ResNets have no `drop_path`."""
    spec = backbone(name)
    made: nn.Module
    if spec.kind == "resnet":
        made = ResNetBackbone(ResNetConfig(**spec.options, out_features=STAGES))
    else:
        made = PvtV2Backbone(PvtV2Config(**spec.options, drop_path_rate=drop_path, out_features=STAGES))
    return made
