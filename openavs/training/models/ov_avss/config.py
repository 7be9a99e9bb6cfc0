"""Configuration of OV-AVSS: of the network (Mask2Former's with audio), its backbones, and of the student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import Mask2FormerConfig, ResNetConfig, SwinConfig

from openavs.errors import InputError
from openavs.training.models.backbones import BACKBONES, STAGES
from openavs.utils.text import did_you_mean

AUDIO_SIZE = 128
"""Channels of a VGGish embedding."""


class OvAvssConfig(Mask2FormerConfig):  # type: ignore[misc]
    """Configuration of the network: Mask2Former's with four additional entries.

    Attributes:
        audio_size: channels of the audio features, 128 for VGGish.
        audio_frames: number of learned positions in time; they are interpolated for other numbers of frames.
        fusion_dropout: dropout of the early fusion's attention maps.
        freeze_batch_norm: keep the statistics and scales of a ResNet's batch norms, as in the paper. False suits a
            backbone with random initial weights.
    """

    model_type = "ov-avss"
    backbones_supported = ("swin", "resnet")

    audio_size: int = AUDIO_SIZE
    audio_frames: int = 5
    fusion_dropout: float = 0.1
    freeze_batch_norm: bool = True


SWINS: dict[str, dict[str, Any]] = {
    "swin_tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "swin_small": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "swin_base": {
        "embed_dim": 128,
        "depths": [2, 2, 18, 2],
        "num_heads": [4, 8, 16, 32],
        "window_size": 12,
        "image_size": 384,
    },
}
"""Swin backbones by name, in addition to the ResNets of `models/backbones.py`; the paper has `swin_base`."""


def backbone_config(name: str) -> Any:
    """Return the configuration of a backbone; the InputError for an unknown name suggests the nearest."""
    if name in SWINS:
        return SwinConfig(**SWINS[name], drop_path_rate=0.3, out_features=list(STAGES))
    resnets = [key for key, spec in BACKBONES.items() if spec.kind == "resnet"]
    if name not in resnets:
        raise InputError(f"ov-avss has no backbone {name!r}; {did_you_mean(name, [*resnets, *SWINS])}")
    return ResNetConfig(**BACKBONES[name].options, out_features=list(STAGES))


@dataclass(frozen=True)
class MatcherWeights:
    """Weights of the losses and of the matching costs, and the sampling of points; the defaults are published.

    Attributes:
        objectness, mask, dice: factors of the terms.
        no_object: weight of a query without an object in the objectness loss.
        points: points of a mask that are compared.
        oversample: random candidates per point of the mask loss.
        importance: share of the points selected by uncertainty; the others are random.
    """

    objectness: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    no_object: float = 0.1
    points: int = 12_544
    oversample: float = 3.0
    importance: float = 0.75


@dataclass(frozen=True)
class OvAvssStudentConfig:
    """Settings of the student (`model` of a training recipe). The defaults are the paper's ResNet-50 setting.

    Attributes:
        backbone: a ResNet of `training/models/backbones.py` or a key of `SWINS`.
        channels, heads, encoder_layers, decoder_layers, encoder_ffn, decoder_ffn, queries: sizes of Mask2Former.
        points: points per mask in the loss.
        no_object: weight in the loss of a query without an object. The published 0.1 suits 100 queries; with it a
            query has an objectness of one half if one in eleven like it sounds.
        frames: frames that are processed together; longer clips are split into runs of this length.
        sides: short sides of the frames in training in pixels; one is sampled per clip.
        test_image_size: short side of the frames in validation and prediction, in pixels.
        fusion_dropout, freeze_batch_norm: see `OvAvssConfig`.
        clip: reference of the CLIP that classifies masks; only label maps need it.
        crops: position of the square crops: `corner`, as published, or `centered`.
        crop_edges: edges of the masks in the crops: `soft`, as published, or `hard`.
        objectness: minimum probability of a sounding object for a query to be classified. None, as published,
            classifies all queries, at up to ten times the cost.
        threshold, top: the `top` best pairs of query and class are kept if their probability is above `threshold`.
        crop_batch: crops that are processed by CLIP together.
    """

    backbone: str = "resnet50"
    channels: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 9
    encoder_ffn: int = 1024
    decoder_ffn: int = 2048
    queries: int = 100
    points: int = 12_544
    no_object: float = 0.1
    frames: int = 5
    sides: tuple[int, ...] = (240, 360, 480)
    test_image_size: int = 360
    fusion_dropout: float = 0.1
    freeze_batch_norm: bool = True
    clip: str | None = "hf:openai/clip-vit-base-patch16"
    crops: str = "corner"
    crop_edges: str = "soft"
    objectness: float | None = None
    threshold: float = 0.3
    top: int = 10
    crop_batch: int = 64

    def __post_init__(self) -> None:
        backbone_config(self.backbone)
        if self.crops not in ("corner", "centered"):
            raise InputError(f"ov-avss: crops are 'corner' or 'centered', not {self.crops!r}")
        if self.crop_edges not in ("soft", "hard"):
            raise InputError(f"ov-avss: crop_edges are 'soft' or 'hard', not {self.crop_edges!r}")
        if self.channels % 32 or self.channels % self.heads or self.encoder_ffn % self.heads:
            raise InputError(
                f"ov-avss: channels ({self.channels}) must be a multiple of 32 and of heads ({self.heads}), and "
                f"encoder_ffn ({self.encoder_ffn}) one of heads"
            )
        if not self.sides or min(self.sides) < 1:
            raise InputError(f"ov-avss: sides are lengths of at least 1, not {list(self.sides)}")
        counts = ("encoder_layers", "decoder_layers", "queries", "points", "frames", "top", "crop_batch")
        for key in (*counts, "test_image_size"):
            if (value := getattr(self, key)) < 1:
                raise InputError(f"ov-avss: {key} is at least 1, not {value}")

    def network(self) -> OvAvssConfig:
        """Return the configuration of the network."""
        return OvAvssConfig(
            backbone_config=backbone_config(self.backbone),
            feature_size=self.channels,
            mask_feature_size=self.channels,
            hidden_dim=self.channels,
            num_attention_heads=self.heads,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers + 1,  # Mask2Former also counts the output before the first layer
            encoder_feedforward_dim=self.encoder_ffn,
            dim_feedforward=self.decoder_ffn,
            num_queries=self.queries,
            audio_frames=self.frames,
            fusion_dropout=self.fusion_dropout,
            freeze_batch_norm=self.freeze_batch_norm,
        )

    def weights(self) -> MatcherWeights:
        """Return the weights of the loss."""
        return MatcherWeights(points=self.points, no_object=self.no_object)
