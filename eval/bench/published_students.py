"""The published AVSegFormer and SAMA-AVS, from checkouts of their repositories, for `training_step.py`.

    git clone https://github.com/vvvb-github/AVSegFormer
    git clone https://github.com/jinxiang-liu/anno-free-AVS
    python eval/bench/training_step.py --only avsegformer sama-avs --published AVSegFormer anno-free-AVS

Their code runs unchanged. Modules that it imports without need here (a compiled operation with a fallback in torch,
readers of audio files, the VGGish, whose features are given) are replaced by empty ones. AVSegFormer's head is behind
the same backbone as ours, whose published ResNet computes a second branch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from openavs.training.base import normalize_images
from openavs.training.models.backbones import backbone, make_backbone

Step = Callable[[], float]


def find_checkout(folders: list[Path], file: str) -> Path | None:
    """Return the first folder that has a file of a repository."""
    return next((folder for folder in folders if (folder / file).is_file()), None)


def avsegformer_step(folder: Path, name: str, frames: Tensor, audio: Tensor, masks: Tensor) -> Step:
    """Return a training step: all frames of a clip, and the loss of the first.

    Args:
        folder: the checkout.
        name: the backbone.
        frames: uint8 `[T, 3, H, W]`.
        audio: `[T, 128]`.
        masks: `[T, H, W]`.
    """
    _empty("MultiScaleDeformableAttention")
    _package("model", folder / "model")
    sys.path.insert(0, str(folder))
    settings: dict[str, Any] = {}
    exec((folder / "config/s4/AVSegFormer_pvt2_s4.py").read_text(encoding="utf-8"), settings)
    options = dict(settings["model"]["head"], in_channels=backbone(name).channels)
    del options["type"]
    head = importlib.import_module("model.head.AVSegHead").AVSegHead(**options)
    network = nn.ModuleDict({"backbone": make_backbone(name), "head": head, "audio": nn.Linear(128, 256)}).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-5)

    def step() -> float:
        features = network["backbone"](normalize_images(frames)).feature_maps
        logits, mixed = network["head"](features, network["audio"](audio[:, None]))
        logits, mixed = logits[:1], mixed[:1].mean(dim=1, keepdim=True)
        mixed = nn.functional.interpolate(mixed, masks.shape[-2:], mode="bilinear")
        return _finish(_dice(logits, masks[:1]) + 0.1 * _dice(mixed, masks[:1]), optimizer)

    return step


def sama_avs_step(folder: Path, sam: Any, frames: Tensor, audio: Tensor, masks: Tensor) -> Step:
    """Return a training step of all given frames; `sam` is a `SamConfig`, the others as in `avsegformer_step`."""
    _package("models", folder / "models").register = lambda name: lambda cls: cls  # type: ignore[attr-defined]
    for part in ("models.mmseg", "models.mmseg.models"):
        _package(part, folder.joinpath(*part.split(".")))
    _empty("configs.vggish_config").cfg = None  # type: ignore[attr-defined]
    _empty("torchvggish").vggish = _empty("torchvggish.vggish")  # type: ignore[attr-defined]
    sys.modules["torchvggish.vggish"].VGGish = lambda *_: nn.Identity()  # type: ignore[attr-defined]
    vision = sam.vision_config
    network = importlib.import_module("models.sam").SAM(
        inp_size=vision.image_size,
        loss="iou",
        encoder_mode={
            "name": "sam",
            "patch_size": vision.patch_size,
            "embed_dim": vision.hidden_size,
            "depth": vision.num_hidden_layers,
            "num_heads": vision.num_attention_heads,
            "mlp_ratio": 4,
            "out_chans": vision.output_channels,
            "qkv_bias": True,
            "use_rel_pos": True,
            "window_size": vision.window_size,
            "global_attn_indexes": vision.global_attn_indexes,
            "prompt_embed_dim": vision.output_channels,
        },
    )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("image_encoder" not in name or "prompt_generator" in name)
    network.optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4)
    network.device = frames.device
    network.train()

    def step() -> float:
        network.input, network.spec, network.gt_mask = normalize_images(frames), audio, masks[:, None].float()
        network.optimize_parameters()
        return float(network.loss_G.detach())

    return step


def _dice(logits: Tensor, masks: Tensor) -> Tensor:
    predicted, true = logits.sigmoid().flatten(1), masks.float().flatten(1)
    areas = (predicted * predicted).sum(1) + 0.001 + (true * true).sum(1) + 0.001
    return (1 - 2 * (predicted * true).sum(1) / areas).mean()


def _finish(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _empty(name: str) -> ModuleType:
    return sys.modules.setdefault(name, ModuleType(name))


def _package(name: str, folder: Path) -> ModuleType:
    """Make a package of a folder without running its `__init__`, which imports what is not needed."""
    package = _empty(name)
    package.__path__ = [str(folder)]
    return package
