"""The configuration of the OV-AVSS localiser: Mask2Former's own, with what the sound adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import Mask2FormerConfig, ResNetConfig, SwinConfig

from openavs.errors import InputError
from openavs.training.models.backbones import BACKBONES, STAGES
from openavs.training.models.ov_avss.matcher import MatcherWeights
from openavs.utils.text import did_you_mean

AUDIO_SIZE = 128
"""Channels of a VGGish embedding."""


class OvAvssConfig(Mask2FormerConfig):  # type: ignore[misc]
    """Mask2Former's configuration and four more entries.

    Args:
        audio_size: channels of the sound's features, 128 for VGGish.
        audio_frames: positions that are learned along time; other numbers of frames interpolate between them.
        fusion_dropout: dropout of the early fusion's attention maps.
        freeze_batch_norm: a ResNet backbone keeps the statistics and scales of its batch norms, as in the paper. A
            backbone that is trained from random weights may be better off without.
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
"""Swin backbones by name, beside the ResNets of `models/backbones.py`; `resnet50` and `swin_base` are the paper's."""


def backbone_config(name: str) -> Any:
    """The configuration of a backbone of that name; InputError names the nearest."""
    if name in SWINS:
        return SwinConfig(**SWINS[name], drop_path_rate=0.3, out_features=list(STAGES))
    resnets = [key for key, spec in BACKBONES.items() if spec.kind == "resnet"]
    if name not in resnets:
        raise InputError(f"ov-avss has no backbone {name!r}; {did_you_mean(name, [*resnets, *SWINS])}")
    return ResNetConfig(**BACKBONES[name].options, out_features=list(STAGES))


@dataclass(frozen=True)
class OvAvssStudentConfig:
    """The defaults are the paper's ResNet-50 setting.

    Args:
        backbone: a ResNet of `training/models/backbones.py` or a key of `SWINS`.
        channels, heads, encoder_layers, decoder_layers, encoder_ffn, decoder_ffn, queries: sizes of Mask2Former.
        points: where masks are compared in the loss.
        frames: of a clip that are seen together; longer clips are cut into runs of as many.
        sides: short sides of the frames in training, of which one is drawn for each clip.
        test_side: the short side else.
        fusion_dropout, freeze_batch_norm: see `OvAvssConfig`.
        clip: reference of the CLIP that names masks; only label maps need it.
        crops: `corner`, the paper's squares, or `centred`.
        edges: of the masks in the crops: `soft`, the paper's, or `hard`.
        objectness: only queries that are at least this sure to be a sounding object are named; nothing, the paper's
            way, names all, at up to ten times the cost.
        threshold, top: the `top` best pairs of query and class are kept if their probability is above `threshold`.
        crop_batch: crops that go through CLIP together.
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
    frames: int = 5
    sides: tuple[int, ...] = (240, 360, 480)
    test_side: int = 360
    fusion_dropout: float = 0.1
    freeze_batch_norm: bool = True
    clip: str | None = "hf:openai/clip-vit-base-patch16"
    crops: str = "corner"
    edges: str = "soft"
    objectness: float | None = None
    threshold: float = 0.3
    top: int = 10
    crop_batch: int = 64

    def __post_init__(self) -> None:
        backbone_config(self.backbone)
        if self.crops not in ("corner", "centred"):
            raise InputError(f"ov-avss: crops are 'corner' or 'centred', not {self.crops!r}")
        if self.edges not in ("soft", "hard"):
            raise InputError(f"ov-avss: edges are 'soft' or 'hard', not {self.edges!r}")
        if self.channels % 32 or self.channels % self.heads or self.encoder_ffn % self.heads:
            raise InputError(
                f"ov-avss: channels ({self.channels}) must be a multiple of 32 and of heads ({self.heads}), and "
                f"encoder_ffn ({self.encoder_ffn}) one of heads"
            )
        if not self.sides or min(self.sides) < 1:
            raise InputError(f"ov-avss: sides are lengths of at least 1, not {list(self.sides)}")
        for key in (
            "encoder_layers",
            "decoder_layers",
            "queries",
            "points",
            "frames",
            "top",
            "crop_batch",
            "test_side",
        ):
            if (value := getattr(self, key)) < 1:
                raise InputError(f"ov-avss: {key} is at least 1, not {value}")

    def network(self) -> OvAvssConfig:
        """The localiser's configuration."""
        return OvAvssConfig(
            backbone_config=backbone_config(self.backbone),
            feature_size=self.channels,
            mask_feature_size=self.channels,
            hidden_dim=self.channels,
            num_attention_heads=self.heads,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers + 1,  # Mask2Former counts the answer before the first layer, too
            encoder_feedforward_dim=self.encoder_ffn,
            dim_feedforward=self.decoder_ffn,
            num_queries=self.queries,
            audio_frames=self.frames,
            fusion_dropout=self.fusion_dropout,
            freeze_batch_norm=self.freeze_batch_norm,
        )

    def weights(self) -> MatcherWeights:
        """Of the loss."""
        return MatcherWeights(points=self.points)
