"""Backbones of the students: PVT-v2 and ResNet of transformers (maps at strides 4 to 32), and VGGish for audio."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PvtV2Backbone, PvtV2Config, ResNetBackbone, ResNetConfig

from openavs.errors import InputError, ModelError
from openavs.media.log_mel import BANDS, EXAMPLE, Floats, examples
from openavs.models.convert import load_state_dict_strict, read_config, read_weights
from openavs.models.hub import resolve
from openavs.structures.types import Waveform
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


KIND = "vggish"


@dataclass(frozen=True)
class VggishConfig:
    """Sizes of the public model. `width` is the number of channels of the first convolution; others are multiples."""

    width: int = 64
    hidden: int = 4096
    features: int = 128


class Vggish(nn.Module):
    """Maps examples `[N, 96, 64]` of 0.96 s of audio to features `[N, 128]`, all at least 0; frozen in the students.

    Written from the published model's description. The names of its tensors are those of the public file
    `vggish-10086976.pth` (`features.*`, `embeddings.*`; 72,141,184 parameters), which
    `python -m openavs.models.convert` converts to safetensors. No PCA and no quantization, like in the papers.
    """

    def __init__(self, config: VggishConfig | None = None) -> None:
        super().__init__()
        self.config = config or VggishConfig()
        self.features = nn.Sequential(*_convolutions(self.config.width))
        flat = 8 * self.config.width * (EXAMPLE // 16) * (BANDS // 16)
        sizes = (flat, self.config.hidden, self.config.hidden, self.config.features)
        layers = [layer for i in range(3) for layer in (nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())]
        self.embeddings = nn.Sequential(*layers)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return the features of log-mel examples."""
        maps = self.features(log_mel[:, None])
        # The published weights expect channels last.
        features: Tensor = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
        return features


def _convolutions(width: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = 1
    for block in ((1,), (2,), (4, 4), (8, 8)):
        for factor in block:
            layers += [nn.Conv2d(channels, factor * width, 3, padding=1), nn.ReLU()]
            channels = factor * width
        layers.append(nn.MaxPool2d(2))
    return layers


@dataclass(frozen=True)
class VggishExtractor:
    """A loaded VGGish, identified by the fingerprint of its weights."""

    network: Vggish
    ref: str
    fingerprint: str
    device: torch.device

    @torch.no_grad()
    def __call__(self, waveform: Waveform) -> Floats:
        """Return features `[n, 128]`, one per whole 0.96 s."""
        log_mel = torch.from_numpy(examples(waveform))
        parts = [self.network(part.to(self.device)).cpu() for part in torch.split(log_mel, 64)]
        return np.asarray(torch.cat(parts)) if parts else np.zeros((0, self.network.config.features), np.float32)


def load_vggish(ref: str, device: torch.device | str = "cpu", offline: bool = False) -> VggishExtractor:
    """Load a VGGish folder: config.json with `"model_type": "vggish"` and *.safetensors, in float32.

    Raises:
        ModelError: no such folder, pickle weights, or another model.
    """
    found = resolve(ref, offline)
    config = read_config(found, KIND)
    weights = read_weights(found)
    sizes = {key: config[key] for key in asdict(VggishConfig()) if key in config}
    if not all(isinstance(size, int) and size > 0 for size in sizes.values()):
        raise ModelError(f"the config.json of the model '{ref}' has a size that is not a positive integer")
    network = Vggish(VggishConfig(**sizes))
    load_state_dict_strict(network, weights, ref)
    return VggishExtractor(
        network.eval().requires_grad_(False).to(device), ref, fingerprint(weights), torch.device(device)
    )


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Return a hash of tensors by name, independent of their file."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous().float()
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:32]


def save_vggish(network: Vggish, folder: Path) -> None:
    """Write a folder for `load_vggish`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(save(dict(network.state_dict())))
    config = {"model_type": KIND, **asdict(network.config)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
