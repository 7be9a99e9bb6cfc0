"""Early fusion: a frame's pixels and the sound of its second look at each other once, before the deformable encoder.

The block is bidirectional attention with one shared score matrix. With a single audio token the softmax over the sound
is one everywhere, so what a frame's pixels receive is the same vector for all of them, while the sound receives an
attention pooling of the frame.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.backbone_utils import load_backbone
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from openavs.training.models.ov_avss.config import OvAvssConfig

GAIN = 1.0 / 6.0
"""What the updates are multiplied with, per channel, before training."""


class EarlyFusion(nn.Module):
    """Attention in both directions between `pixels` and `sound` tokens of the same frame.

    Args:
        visual: channels of the pixel tokens.
        audio: channels of the sound tokens.
        inner: channels of the attention, split between `heads` (the published code takes the encoder's FFN size).
        dropout: on both attention maps while training.
    """

    def __init__(self, visual: int, audio: int, inner: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.scaling = heads, (inner // heads) ** -0.5
        self.visual_norm, self.audio_norm = nn.LayerNorm(visual), nn.LayerNorm(audio)
        self.visual_query, self.audio_key = nn.Linear(visual, inner), nn.Linear(audio, inner)
        self.visual_value, self.audio_value = nn.Linear(visual, inner), nn.Linear(audio, inner)
        self.visual_out, self.audio_out = nn.Linear(inner, visual), nn.Linear(inner, audio)
        self.visual_gain = nn.Parameter(torch.full((visual,), GAIN))
        self.audio_gain = nn.Parameter(torch.full((audio,), GAIN))
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels: torch.Tensor, sound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`pixels` `[N, S, visual]` and `sound` `[N, K, audio]`, both updated; the residual is the normalised input."""
        pixels, sound = self.visual_norm(pixels), self.audio_norm(sound)
        query = self._split(self.visual_query(pixels) * self.scaling)
        scores = (query @ self._split(self.audio_key(sound)).transpose(2, 3)).float()  # [N, heads, S, K]
        heard = self.dropout(scores.softmax(-1)).to(pixels.dtype) @ self._split(self.audio_value(sound))
        shares = self.dropout(scores.softmax(-2)).to(pixels.dtype)
        seen = shares.transpose(2, 3) @ self._split(self.visual_value(pixels))
        pixels = pixels + self.visual_gain * self.visual_out(self._join(heard))
        sound = sound + self.audio_gain * self.audio_out(self._join(seen))
        return pixels, sound

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[N, S, inner]` to `[N, heads, S, inner / heads]`."""
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)

    def _join(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.transpose(1, 2).flatten(2)


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
