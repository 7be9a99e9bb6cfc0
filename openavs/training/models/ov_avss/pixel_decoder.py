"""Frames to features: transformers' backbone and pixel decoder, with the sound fused in before its encoder."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.backbone_utils import load_backbone
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from openavs.training.models.ov_avss.fusion import EarlyFusion
from openavs.training.models.ov_avss.network_config import OvAvssConfig


class PixelFeatures(NamedTuple):
    """Of N frames: `levels` `[N, d, h, w]` at strides 32, 16 and 8, `masks` `[N, d, H/4, W/4]`, `sound` `[N, a]`."""

    levels: tuple[torch.Tensor, ...]
    masks: torch.Tensor
    sound: torch.Tensor


class AudioVisualPixelDecoder(Mask2FormerPixelDecoder):  # type: ignore[misc]
    """The pixel decoder of which the encoder's input tokens are fused with the frame's sound.

    Its forward is transformers' own: the fusion is a hook in front of the encoder, which exists for one call alone, so
    that nothing of one call can reach another.
    """

    def __init__(self, config: OvAvssConfig, feature_channels: list[int]) -> None:
        super().__init__(config, feature_channels)
        self.audio_fusion = EarlyFusion(
            config.feature_size,
            config.audio_size,
            config.encoder_feedforward_dim,
            config.num_attention_heads,
            config.fusion_dropout,
        )

    def forward(self, features: tuple[torch.Tensor, ...], sound: torch.Tensor) -> PixelFeatures:
        """`features` of the backbone at strides 4 to 32, `sound` `[N, a]`, one row per frame."""
        heard: list[torch.Tensor] = []

        def fuse(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            pixels, token = self.audio_fusion(kwargs["inputs_embeds"], sound[:, None])
            heard.append(token[:, 0])
            return args, kwargs | {"inputs_embeds": pixels}

        with self.encoder.register_forward_pre_hook(fuse, with_kwargs=True):
            output = super().forward(features)
        return PixelFeatures(tuple(output.multi_scale_features), output.mask_features, heard[0])


class AudioVisualPixelLevel(nn.Module):
    """Backbone and pixel decoder; the names of their parameters are Mask2Former's."""

    def __init__(self, config: OvAvssConfig) -> None:
        super().__init__()
        self.encoder = load_backbone(config)
        self.decoder = AudioVisualPixelDecoder(config, self.encoder.channels)
        self.frozen_norms = config.freeze_batch_norm
        for norm in self._norms():
            norm.requires_grad_(False)
        for name, parameter in self.encoder.named_parameters():
            if name.startswith("swin.layernorm."):  # the norm after Swin's last stage, which its backbone leaves unused
                parameter.requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor, sound: torch.Tensor) -> PixelFeatures:
        """`pixel_values` `[N, 3, H, W]`, normalised, sides multiples of 32; `sound` `[N, a]`."""
        features: PixelFeatures = self.decoder(tuple(self.encoder(pixel_values).feature_maps), sound)
        return features

    def train(self, mode: bool = True) -> AudioVisualPixelLevel:
        """Frozen batch norms stay as they are: they use, and keep, the statistics they were loaded with."""
        super().train(mode)
        for norm in self._norms():
            norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        modules = self.encoder.modules() if self.frozen_norms else ()
        return [module for module in modules if isinstance(module, nn.BatchNorm2d)]
