"""Early fusion: a frame's pixels and the sound of its second look at each other once, before the deformable encoder.

The block is bidirectional attention with one shared score matrix. With a single audio token the softmax over the sound
is one everywhere, so what a frame's pixels receive is the same vector for all of them, while the sound receives an
attention pooling of the frame.
"""

from __future__ import annotations

import torch
from torch import nn

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
