"""Backbone and pixel decoder of OV-AVSS: Mask2Former's, with early fusion of image and audio features.

The fusion is bidirectional attention with one shared score matrix, applied once before the deformable encoder. With a
single audio token the softmax over the audio is 1 everywhere: all pixels of a frame receive the same vector, and the
audio token receives an attention pooling of the frame.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.backbone_utils import load_backbone
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

from openavs.training.models.ov_avss.config import OvAvssConfig

GAIN = 1.0 / 6.0
"""Initial factor of the fusion's residual updates, one learned value per channel."""


class EarlyFusion(nn.Module):
    """Bidirectional attention between the pixel and audio tokens of a frame.

    Args:
        visual: channels of the pixel tokens.
        audio: channels of the audio tokens.
        inner: channels of the attention, split between `heads` (the published code uses the encoder's FFN size).
        heads: number of attention heads.
        dropout: dropout of both attention maps in training.
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

    def forward(self, pixels: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Update pixel tokens `[N, S, visual]` and audio tokens `[N, K, audio]` by each other."""
        # As published, the residual connections start at the normalized tokens.
        pixels, audio = self.visual_norm(pixels), self.audio_norm(audio)
        query = self._split_heads(self.visual_query(pixels) * self.scaling)
        scores = (query @ self._split_heads(self.audio_key(audio)).transpose(2, 3)).float()  # [N, heads, S, K]
        to_audio = self.dropout(scores.softmax(-1)).to(pixels.dtype)
        from_audio = to_audio @ self._split_heads(self.audio_value(audio))
        to_pixels = self.dropout(scores.softmax(-2)).to(pixels.dtype)
        from_pixels = to_pixels.transpose(2, 3) @ self._split_heads(self.visual_value(pixels))
        pixels = pixels + self.visual_gain * self.visual_out(self._join_heads(from_audio))
        audio = audio + self.audio_gain * self.audio_out(self._join_heads(from_pixels))
        return pixels, audio

    def _split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        """Reshape `[N, S, inner]` to `[N, heads, S, inner / heads]`."""
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)

    def _join_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.transpose(1, 2).flatten(2)


class PixelFeatures(NamedTuple):
    """Features of N frames."""

    levels: tuple[torch.Tensor, ...]  # [N, d, h, w] at strides 32, 16 and 8
    masks: torch.Tensor  # [N, d, H/4, W/4]
    audio: torch.Tensor  # [N, a]


class AudioVisualPixelDecoder(Mask2FormerPixelDecoder):  # type: ignore[misc]
    """Mask2Former's pixel decoder with early fusion of the encoder's input tokens and the frame's audio."""

    def __init__(self, config: OvAvssConfig, feature_channels: list[int]) -> None:
        super().__init__(config, feature_channels)
        self.audio_fusion = EarlyFusion(
            config.feature_size,
            config.audio_size,
            config.encoder_feedforward_dim,
            config.num_attention_heads,
            config.fusion_dropout,
        )

    def forward(self, features: tuple[torch.Tensor, ...], audio: torch.Tensor) -> PixelFeatures:
        """Decode backbone features at strides 4 to 32 with audio features `[N, a]`, one row per frame."""
        fused_audio: list[torch.Tensor] = []

        def fuse(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            pixels, token = self.audio_fusion(kwargs["inputs_embeds"], audio[:, None])
            fused_audio.append(token[:, 0])
            return args, kwargs | {"inputs_embeds": pixels}

        # The inherited forward has no place for the fusion, so a hook before the encoder inserts it for this call.
        with self.encoder.register_forward_pre_hook(fuse, with_kwargs=True):
            output = super().forward(features)
        return PixelFeatures(tuple(output.multi_scale_features), output.mask_features, fused_audio[0])


class AudioVisualPixelLevel(nn.Module):
    """Backbone and pixel decoder, with Mask2Former's parameter names."""

    def __init__(self, config: OvAvssConfig) -> None:
        super().__init__()
        self.encoder = load_backbone(config)
        self.decoder = AudioVisualPixelDecoder(config, self.encoder.channels)
        self.frozen_norms = config.freeze_batch_norm
        for norm in self._frozen_batch_norms():
            norm.requires_grad_(False)
        for name, parameter in self.encoder.named_parameters():
            if name.startswith("swin.layernorm."):  # the backbone does not use Swin's final norm
                parameter.requires_grad_(False)

    def forward(self, pixel_values: torch.Tensor, audio: torch.Tensor) -> PixelFeatures:
        """Encode normalized frames `[N, 3, H, W]`, sides multiples of 32, with audio features `[N, a]`."""
        features: PixelFeatures = self.decoder(tuple(self.encoder(pixel_values).feature_maps), audio)
        return features

    def train(self, mode: bool = True) -> AudioVisualPixelLevel:
        """Set the mode; frozen batch norms stay in evaluation mode and keep their loaded statistics."""
        super().train(mode)
        for norm in self._frozen_batch_norms():
            norm.eval()
        return self

    def _frozen_batch_norms(self) -> list[nn.Module]:
        modules = self.encoder.modules() if self.frozen_norms else ()
        return [module for module in modules if isinstance(module, nn.BatchNorm2d)]
