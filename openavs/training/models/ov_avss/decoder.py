"""Queries to masks: Mask2Former's decoder over all frames of a clip at once, with the sound as a second memory.

A query is one sounding object through the whole clip: its masks are cut out of every frame's features by one vector.
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
    """What one layer says: normalised `queries` `[B, Q, d]` and mask logits `[B, Q, T, H/4, W/4]`."""

    queries: torch.Tensor
    masks: torch.Tensor


class DecoderMemory(NamedTuple):
    """What queries look at, sequence first: `tokens` `[S, B, d]` and the code of their `positions` `[S, 1 or B, d]`."""

    tokens: torch.Tensor
    positions: torch.Tensor


class AudioAttention(nn.Module):
    """`LN(x + attention(x + positions, sound + its positions, sound))`; all sequence first."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads)
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, sound: DecoderMemory) -> torch.Tensor:
        """`tokens` `[N, B, d]` after they listened to the `sound`."""
        keys = sound.tokens + sound.positions
        heard, _ = self.attention(tokens + positions, keys, sound.tokens, need_weights=False)
        normalised: torch.Tensor = self.norm(tokens + heard)
        return normalised


class AudioVisualDecoderLayer(Mask2FormerMaskedAttentionDecoderLayer):  # type: ignore[misc]
    """Masked attention to the pixels, attention among the queries, attention to the sound, feed-forward; post-norm."""

    def __init__(self, config: OvAvssConfig) -> None:
        super().__init__(config)
        self.audio_attention = AudioAttention(config.hidden_dim, config.num_attention_heads)

    def forward(
        self,
        queries: torch.Tensor,
        positions: torch.Tensor,
        pixels: DecoderMemory,
        hidden: torch.Tensor,
        sound: DecoderMemory,
    ) -> torch.Tensor:
        """`queries` `[Q, B, d]`; `hidden` `[B * heads, Q, S]` is true where a query must not look."""
        keys = pixels.tokens + pixels.positions
        seen, _ = self.cross_attn(queries + positions, keys, pixels.tokens, attn_mask=hidden, need_weights=False)
        queries = self.cross_attn_layer_norm(queries + self._drop(seen))
        shared, _ = self.self_attn(hidden_states=queries, position_embeddings=positions)
        queries = self.self_attn_layer_norm(queries + self._drop(shared))
        queries = self.audio_attention(queries, positions, sound)
        inner = self._drop(self.activation_fn(self.fc1(queries)))
        normalised: torch.Tensor = self.final_layer_norm(queries + self._drop(self.fc2(inner)))
        return normalised

    def _drop(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.dropout(tokens, self.dropout, self.training)


class AudioVisualDecoder(Mask2FormerMaskedAttentionDecoder):  # type: ignore[misc]
    """Mask2Former's decoder with a time axis; as there, the queries speak before the first layer and after each."""

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
        sound: DecoderMemory,
        first: DecoderOutput,
    ) -> list[DecoderOutput]:
        """`masks` are the mask features `[B, T, d, H/4, W/4]`, `sizes` each level's (h, w); `first` spoke already."""
        said = [first]
        for number, layer in enumerate(self.layers):
            level = number % len(pixels)
            hidden = self._hidden(said[-1].masks, sizes[level])
            queries = layer(queries, positions, pixels[level], hidden, sound)
            said.append(self.speak(queries, masks))
        return said

    def speak(self, queries: torch.Tensor, masks: torch.Tensor) -> DecoderOutput:
        """What the queries `[Q, B, d]` say now."""
        normalised = self.layernorm(queries).transpose(0, 1)
        vectors = self.mask_predictor.mask_embedder(normalised)
        return DecoderOutput(normalised, torch.einsum("bqc,btchw->bqthw", vectors, masks))

    def _hidden(self, masks: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Where each query must not look, `[B * heads, Q, T * h * w]`: outside the mask it last saw.

        A query that would see nothing looks everywhere.
        """
        small = F.interpolate(masks.detach().flatten(1, 2), size=size, mode="bilinear", align_corners=False)
        outside = (small.sigmoid() < 0.5).reshape(*masks.shape[:2], -1)
        outside &= ~outside.all(-1, keepdim=True)
        return outside.repeat_interleave(self.heads, 0)


class AudioVisualTransformer(Mask2FormerTransformerModule):  # type: ignore[misc]
    """Mask2Former's transformer module over clips; the queries hear the sound before they first look."""

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
        """What the queries say before the first layer and after each, of `batch` clips whose frames lie in a row."""
        frames = len(features.masks) // batch
        pixels = [self._pixels(i, level, batch) for i, level in enumerate(features.levels)]
        masks = features.masks.reshape(batch, frames, *features.masks.shape[1:])
        sound = self._sound(features.sound, batch)
        positions = self.queries_embedder.weight[:, None].expand(-1, batch, -1)
        queries = self.queries_features.weight[:, None].expand(-1, batch, -1)
        queries = self.query_audio_attention(queries, positions, sound)
        first = self.decoder.speak(queries, masks)
        tokens = self.audio_self_attention(sound.tokens, sound.positions, sound)
        sizes = [level.shape[-2:] for level in features.levels]
        said: list[DecoderOutput] = self.decoder(
            queries, positions, pixels, sizes, masks, DecoderMemory(tokens, sound.positions), first
        )
        return said

    def _pixels(self, number: int, level: torch.Tensor, batch: int) -> DecoderMemory:
        """One level `[B * T, d, h, w]` as the memory of whole clips, `[T * h * w, B, d]`."""
        frames = len(level) // batch
        projected = self.input_projections[number](level) + self.level_embed.weight[number][:, None, None]
        clips = projected.reshape(batch, frames, *projected.shape[1:])
        tokens = clips.permute(1, 3, 4, 0, 2).flatten(0, 2)
        positions = sine_3d((frames, *level.shape[-2:]), tokens)
        return DecoderMemory(tokens, positions[:, None])

    def _sound(self, sound: torch.Tensor, batch: int) -> DecoderMemory:
        """The sound `[B * T, a]`, frames of a clip in a row, as `[T, B, d]`."""
        tokens = self.audio_projection(sound.reshape(batch, -1, sound.shape[-1])).transpose(0, 1)
        return DecoderMemory(tokens, interpolate_positions(self.audio_positions.weight, len(tokens))[:, None])
