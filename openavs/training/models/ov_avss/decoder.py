"""Mask2Former's decoder over all frames of a clip at once, with the audio as a second memory.

A query is one sounding object through the whole clip: its masks in all frames come from one vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoder,
    Mask2FormerMaskedAttentionDecoderLayer,
    Mask2FormerTransformerModule,
)

from openavs.training.models.ov_avss.config import OvAvssConfig
from openavs.training.models.ov_avss.pixel_decoder import PixelFeatures
from openavs.training.models.ov_avss.position_encoding import interpolate_positions, sine_3d


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
