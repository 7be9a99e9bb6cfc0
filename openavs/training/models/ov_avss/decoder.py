"""Mask2Former's pixel decoder and decoder, with audio: fused with the pixels, and as the decoder's second memory.

A query is one sounding object through the whole clip: its masks in all frames come from one vector.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.backbone_utils import load_backbone
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoder,
    Mask2FormerMaskedAttentionDecoderLayer,
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)

from openavs.training.models.ov_avss.config import OvAvssConfig

GAIN = 1.0 / 6.0
"""Initial factor of the fusion's residual updates, one learned value per channel."""


class EarlyFusion(nn.Module):
    """Bidirectional attention between the pixel and audio tokens of a frame, with one shared score matrix.

    It is applied once, before the deformable encoder. With a single audio token the softmax over the audio is 1
    everywhere: all pixels of a frame receive the same vector, and the audio token an attention pooling of the frame.

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


class DecoderOutput(NamedTuple):
    """Output of one layer: normalized queries `[B, Q, d]` and mask logits `[B, Q, T, H/4, W/4]`."""

    queries: torch.Tensor
    masks: torch.Tensor


class DecoderMemory(NamedTuple):
    """Keys and values of attention, sequence first: tokens `[S, B, d]` and position encodings `[S, 1 or B, d]`."""

    tokens: torch.Tensor
    positions: torch.Tensor


class AudioAttention(nn.Module):
    """`LN(x + attention(x + positions, audio + its positions, audio))`; all sequence first."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads)
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, audio: DecoderMemory) -> torch.Tensor:
        """Return tokens `[N, B, d]` after attention to the audio."""
        keys = audio.tokens + audio.positions
        attended, _ = self.attention(tokens + positions, keys, audio.tokens, need_weights=False)
        normalized: torch.Tensor = self.norm(tokens + attended)
        return normalized


class AudioVisualDecoderLayer(Mask2FormerMaskedAttentionDecoderLayer):  # type: ignore[misc]
    """Masked attention to the pixels, self-attention, attention to the audio, feed-forward; post-norm."""

    def __init__(self, config: OvAvssConfig) -> None:
        super().__init__(config)
        self.audio_attention = AudioAttention(config.hidden_dim, config.num_attention_heads)

    def forward(
        self,
        queries: torch.Tensor,
        positions: torch.Tensor,
        pixels: DecoderMemory,
        ignored: torch.Tensor,
        audio: DecoderMemory,
    ) -> torch.Tensor:
        """Update queries `[Q, B, d]`; `ignored` `[B * heads, Q, S]` is true where a query does not attend."""
        keys = pixels.tokens + pixels.positions
        attended, _ = self.cross_attn(queries + positions, keys, pixels.tokens, attn_mask=ignored, need_weights=False)
        queries = self.cross_attn_layer_norm(queries + self._dropout(attended))
        attended, _ = self.self_attn(hidden_states=queries, position_embeddings=positions)
        queries = self.self_attn_layer_norm(queries + self._dropout(attended))
        queries = self.audio_attention(queries, positions, audio)
        inner = self._dropout(self.activation_fn(self.fc1(queries)))
        normalized: torch.Tensor = self.final_layer_norm(queries + self._dropout(self.fc2(inner)))
        return normalized

    def _dropout(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.dropout(tokens, self.dropout, self.training)


class AudioVisualDecoder(Mask2FormerMaskedAttentionDecoder):  # type: ignore[misc]
    """Mask2Former's decoder with a time axis; masks are predicted before the first layer and after each."""

    def __init__(self, config: OvAvssConfig) -> None:
        super().__init__(config)
        self.heads: int = config.num_attention_heads
        self.layers = nn.ModuleList(AudioVisualDecoderLayer(config) for _ in range(self.decoder_layers))

    def forward(
        self,
        queries: torch.Tensor,
        positions: torch.Tensor,
        pixels: list[DecoderMemory],
        sizes: list[torch.Size],
        masks: torch.Tensor,
        audio: DecoderMemory,
        first: DecoderOutput,
    ) -> list[DecoderOutput]:
        """Return the outputs before the first layer and after each.

        Args:
            queries: `[Q, B, d]`.
            positions: position encodings of the queries, `[Q, B, d]`.
            pixels: the levels, coarsest first; the layers cycle through them.
            sizes: (h, w) of each level.
            masks: mask features `[B, T, d, H/4, W/4]`.
            audio: the audio of the clips.
            first: the output before the first layer.
        """
        outputs = [first]
        for number, layer in enumerate(self.layers):
            level = number % len(pixels)
            ignored = self._ignored(outputs[-1].masks, sizes[level])
            queries = layer(queries, positions, pixels[level], ignored, audio)
            outputs.append(self.predict_masks(queries, masks))
        return outputs

    def predict_masks(self, queries: torch.Tensor, masks: torch.Tensor) -> DecoderOutput:
        """Predict the masks of queries `[Q, B, d]` from mask features `[B, T, d, H/4, W/4]`."""
        normalized = self.layernorm(queries).transpose(0, 1)
        vectors = self.mask_predictor.mask_embedder(normalized)
        return DecoderOutput(normalized, torch.einsum("bqc,btchw->bqthw", vectors, masks))

    def _ignored(self, masks: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Return the attention mask `[B * heads, Q, T * h * w]`: true outside a query's last mask."""
        small = F.interpolate(masks.detach().flatten(1, 2), size=size, mode="bilinear", align_corners=False)
        outside = (small.sigmoid() < 0.5).reshape(*masks.shape[:2], -1)
        outside &= ~outside.all(-1, keepdim=True)  # a query with an empty mask attends to all pixels
        return outside.repeat_interleave(self.heads, 0)


class AudioVisualTransformer(Mask2FormerTransformerModule):  # type: ignore[misc]
    """Mask2Former's transformer module over clips; the queries attend to the audio before the first masks."""

    def __init__(self, config: OvAvssConfig) -> None:
        super().__init__(in_features=config.feature_size, config=config)
        channels, heads = config.hidden_dim, config.num_attention_heads
        self.decoder = AudioVisualDecoder(config)
        self.audio_projection = nn.Sequential(
            nn.Linear(config.audio_size, channels), nn.ReLU(), nn.Linear(channels, channels)
        )
        self.audio_positions = nn.Embedding(config.audio_frames, channels)
        self.query_audio_attention = AudioAttention(channels, heads)
        self.audio_self_attention = AudioAttention(channels, heads)

    def forward(self, features: PixelFeatures, batch: int) -> list[DecoderOutput]:
        """Return the outputs before the first layer and after each, for `batch` clips with consecutive frames."""
        frames = len(features.masks) // batch
        pixels = [self._pixel_memory(i, level, batch) for i, level in enumerate(features.levels)]
        masks = features.masks.reshape(batch, frames, *features.masks.shape[1:])
        audio = self._audio_memory(features.audio, batch)
        positions = self.queries_embedder.weight[:, None].expand(-1, batch, -1)
        queries = self.queries_features.weight[:, None].expand(-1, batch, -1)
        queries = self.query_audio_attention(queries, positions, audio)
        first = self.decoder.predict_masks(queries, masks)
        tokens = self.audio_self_attention(audio.tokens, audio.positions, audio)
        sizes = [level.shape[-2:] for level in features.levels]
        outputs: list[DecoderOutput] = self.decoder(
            queries, positions, pixels, sizes, masks, DecoderMemory(tokens, audio.positions), first
        )
        return outputs

    def _pixel_memory(self, number: int, level: torch.Tensor, batch: int) -> DecoderMemory:
        """Convert one level `[B * T, d, h, w]` to the memory of whole clips, `[T * h * w, B, d]`."""
        frames = len(level) // batch
        projected = self.input_projections[number](level) + self.level_embed.weight[number][:, None, None]
        clips = projected.reshape(batch, frames, *projected.shape[1:])
        tokens = clips.permute(1, 3, 4, 0, 2).flatten(0, 2)
        positions = sine_3d((frames, *level.shape[-2:]), tokens)
        return DecoderMemory(tokens, positions[:, None])

    def _audio_memory(self, audio: torch.Tensor, batch: int) -> DecoderMemory:
        """Convert audio features `[B * T, a]` to the memory of whole clips, `[T, B, d]`."""
        tokens = self.audio_projection(audio.reshape(batch, -1, audio.shape[-1])).transpose(0, 1)
        return DecoderMemory(tokens, interpolate_positions(self.audio_positions.weight, len(tokens))[:, None])


_TEMPERATURE = 10_000.0


def sine_3d(size: tuple[int, int, int], tokens: torch.Tensor) -> torch.Tensor:
    """Return the encodings `[frames * height * width, d]` for tokens `[..., d]`; `size` is (frames, height, width).

    As in Mask2Former for video: rows and columns have half of the channels each, and the encoding of the frame is added
    to all of them. Each axis is scaled to 2 pi, independent of its length.
    """
    channels = tokens.shape[-1]
    widths = (channels, channels // 2, channels // 2)
    time, rows, columns = (_sines(n, width, tokens.device) for n, width in zip(size, widths, strict=True))
    plane = torch.cat(
        [rows[:, None].expand(-1, size[2], -1), columns[None].expand(size[1], -1, -1)], dim=-1
    )  # [height, width, channels]
    return (time[:, None, None] + plane).flatten(0, 2).to(tokens.dtype)


def interpolate_positions(table: torch.Tensor, frames: int) -> torch.Tensor:
    """Interpolate a learned table `[positions, channels]` linearly to a number of frames.

    The first and the last frame keep the first and the last position, so a clip of any length spans the table.
    """
    if len(table) == frames:
        return table
    return F.interpolate(table.T[None], size=frames, mode="linear", align_corners=True)[0].T


def _sines(length: int, channels: int, device: torch.device) -> torch.Tensor:
    """Return alternating sines and cosines of the positions 1 to `length`, float32 `[length, channels]`."""
    position = torch.arange(1, length + 1, dtype=torch.float32, device=device) / (length + 1e-6) * (2 * math.pi)
    pair = torch.arange(channels, dtype=torch.float32, device=device).div(2, rounding_mode="floor")
    angle = position[:, None] / _TEMPERATURE ** (2 * pair / channels)
    return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1)
