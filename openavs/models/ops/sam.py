"""Optimized image encoders of SAM, SAM-HQ and SAM 2 for CPUs: the library's results up to rounding, in less time.

Linear layers use the processor's fastest kernel, with a fused activation. Per-cell operations skip the cells that only
pad windows. SAM's relative positions are never expanded to a matrix as large as all scores of a layer. Attention runs
in chunks that fit in the cache. Between the matrix products, which may be in bfloat16, the activations stay in float32.
On a GPU the library's own fused attention is faster, and is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import max_pool2d, scaled_dot_product_attention, softmax
from transformers.models.sam.modeling_sam import SamVisionLayer
from transformers.models.sam2.modeling_sam2 import (
    Sam2FeedForward,
    Sam2HieraDetModel,
    Sam2MultiScaleAttention,
    Sam2SinePositionEmbedding,
)
from transformers.models.sam_hq.modeling_sam_hq import SamHQVisionLayer

from openavs.models.ops.linear import FeedForward, inference_linear, replace_modules

# Attention scores per chunk. On one thread: 1 MB of float32, the second-level cache; 2 MB of bfloat16, whose products
# are fast, so that a smaller chunk spends its time on copying the keys. For each of several threads, which synchronize
# after every operation, more.
_CACHED_SCORES, _THREAD_SCORES = {False: 1 << 18, True: 1 << 20}, 1 << 21
_SAM_LAYERS = (SamVisionLayer, SamHQVisionLayer)
_MAX_FOLDED_EDGE = 32  # cells; in smaller windows the matrix product itself adds the relative positions


def prepare_encoder(encoder: nn.Module, body: nn.Module, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Make a loaded image encoder compute in a dtype; returns the dtype of its input pixels.

    On a CPU the whole encoder is optimized; elsewhere its `body`, which is the encoder or a part of it, is converted.
    """
    if device.type == "cpu":
        optimize_sam(encoder, dtype)
        return torch.float32
    body.to(dtype)
    for module in encoder.modules():
        if isinstance(module, _SAM_LAYERS) and module.attn.use_rel_pos:
            _precompute_positions(module.attn)
    return dtype


def _precompute_positions(attention: Any) -> None:
    """Expand the tables of relative positions once; the library does so in each forward pass, with CPU indices."""
    tables = [attention.rel_pos_h, attention.rel_pos_w]
    rows, columns = _relative_positions(attention)
    attention.get_rel_pos = lambda _queries, _keys, table: rows if table is tables[0] else columns


def _relative_positions(attention: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings `[edge, edge, D]` of each query and key position: of rows, and of columns."""
    edge = (len(attention.rel_pos_h) + 1) // 2
    rows, columns = (
        attention.get_rel_pos(edge, edge, table).detach() for table in (attention.rel_pos_h, attention.rel_pos_w)
    )
    return rows, columns


def optimize_sam(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Replace layers of a loaded image encoder; `dtype` is that of its large products, see `inference_linear`."""

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, _SAM_LAYERS):
            return OptimizedSamLayer(module, dtype)
        if isinstance(module, Sam2MultiScaleAttention):
            return HieraAttention(module, dtype)
        if isinstance(module, Sam2FeedForward) and module.num_layers == 2 and not module.sigmoid_output:
            return FeedForward(module.proj_in, module.proj_out, module.activation, dtype)
        return inference_linear(module) if type(module) is nn.Linear else None

    replace_modules(encoder, replacement)
    part: Any
    for part in encoder.modules():  # positions depend on the size of the input alone
        if isinstance(part, Sam2HieraDetModel):
            part._get_pos_embed = lru_cache(maxsize=1)(part._get_pos_embed)
        if isinstance(part, Sam2SinePositionEmbedding):
            part.forward = lru_cache(maxsize=4)(part.forward)  # one for each level


def optimize_decoder(decoder: nn.Module, dtype: torch.dtype) -> None:
    """Replace the layers of a mask decoder that project every cell for every box, into attention with the tokens."""
    exact = torch.float32 if dtype == torch.qint8 else dtype

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        return inference_linear(module, exact) if type(module) is nn.Linear and "_to_" in name else None

    replace_modules(decoder, replacement)


class OptimizedSamLayer(nn.Module):
    """A layer of SAM's image encoder: windowed or global attention, then a feed-forward network."""

    def __init__(self, library: Any, dtype: torch.dtype) -> None:
        super().__init__()
        attention = library.attn
        self.window_size = library.window_size  # SAM-HQ's encoder reads it, too
        self.heads = attention.num_attention_heads
        self.norm1, self.norm2 = library.layer_norm1, library.layer_norm2
        self.qkv, self.proj = inference_linear(attention.qkv, dtype), inference_linear(attention.proj, dtype)
        self.mlp = FeedForward(library.mlp.lin1, library.mlp.lin2, library.mlp.act, dtype)
        self.rows = self.columns = None
        if attention.use_rel_pos:
            activations = torch.float32 if dtype == torch.qint8 else dtype
            self.rows, self.columns = (
                nn.Parameter(table.to(activations), requires_grad=False) for table in _relative_positions(attention)
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform cells `[B, h, w, C]`."""
        batch, height, width, _channels = hidden_states.shape
        qkv = self.qkv(self.norm1(hidden_states))
        edge = self.window_size or height
        high, wide = (-(-length // edge) for length in (height, width))
        if (high * edge, wide * edge) != (height, width):
            # Cells that pad a window are zeros after the norm, so their projection is the bias.
            full = qkv.new_zeros((batch, high * edge, wide * edge, qkv.shape[-1]))
            if self.qkv.bias is not None:
                full += self.qkv.bias
            full[:, :height, :width] = qkv
            qkv = full
        windows = qkv.view(batch, high, edge, wide, edge, 3, self.heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
        query, key, value = windows.reshape(3, batch * high * wide * self.heads, edge * edge, -1).unbind(0)
        mixed = self._attend(query, key, value, edge).view(batch, high, wide, self.heads, edge, edge, -1)
        mixed = mixed.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, high * edge, wide * edge, -1)
        hidden_states = hidden_states + self.proj(mixed[:, :height, :width])
        output: torch.Tensor = hidden_states + self.mlp(self.norm2(hidden_states))
        return output

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, edge: int) -> torch.Tensor:
        """Compute attention of `[G, edge * edge, D]`.

        A score is `q k / sqrt(D) + q row(y, y') + q column(x, x')`; `q row` is one number for each row of keys.
        """
        scaled = query * query.shape[-1] ** -0.5
        across = down = None
        if self.rows is not None and self.columns is not None:
            grid = query.view(len(query), edge, edge, -1)
            down = torch.einsum("ghwc,hkc->ghwk", grid, self.rows).flatten(1, 2)  # [G, cells, edge]
            across = torch.einsum("ghwc,wkc->ghwk", grid, self.columns).flatten(1, 2)
            if edge < _MAX_FOLDED_EDGE or query.dtype != torch.float32:
                cell = torch.eye(edge, dtype=query.dtype, device=query.device)
                one_hot = torch.cat([cell.repeat_interleave(edge, 0), cell.repeat(edge, 1)], -1)  # of row and column
                scaled = torch.cat([scaled, down, across], -1)
                key = torch.cat([key, one_hot.expand(len(key), -1, -1)], -1)
                across = down = None

        def add_positions(scores: torch.Tensor, part: tuple[slice, slice]) -> None:
            if down is not None and across is not None:
                by_cell = scores.view(*scores.shape[:2], edge, edge)
                by_cell.add_(down[part][..., None]).add_(across[part][:, :, None])

        mixed: torch.Tensor = attend_in_chunks(scaled, key, value, add_positions)
        return mixed


@torch.compiler.disable  # type: ignore[untyped-decorator]  # its loops would be unrolled
def attend_in_chunks(
    scaled: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    add: Callable[[torch.Tensor, tuple[slice, slice]], None] = lambda scores, part: None,
) -> torch.Tensor:
    """Compute attention of scaled queries `[G, Q, D]` with keys and values `[G, K, D]`, some scores at a time.

    `add` adds to the scores `[g, q, K]` of a part of groups and queries.
    """
    (count, queries, _), cells = scaled.shape, key.shape[1]
    # Contiguous, or the product of every chunk in bfloat16 would copy them.
    keys, output = key.transpose(1, 2).contiguous(), value.new_empty(count, queries, value.shape[-1])
    threads = torch.get_num_threads()
    chunk = _CACHED_SCORES[scaled.dtype == torch.bfloat16] if threads == 1 else _THREAD_SCORES * threads
    groups, step = max(chunk // (queries * cells), 1), max(chunk // cells, 1)
    for first in range(0, count, groups):
        group = slice(first, first + groups)
        for start in range(0, queries, step):
            part = (group, slice(start, start + step))
            scores = torch.bmm(scaled[part], keys[group])
            add(scores, part)
            output[part] = torch.bmm(softmax(scores, dim=-1), value[group])
    return output


class HieraAttention(nn.Module):
    """Windowed attention of SAM 2's backbone, without the scores that the library computes and discards.

    In bfloat16 torch's fused attention is as slow as in float32, and products of matrices are not.
    """

    def __init__(self, library: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.stride = library.num_attention_heads, library.query_stride
        self.qkv, self.proj = inference_linear(library.qkv, dtype), inference_linear(library.proj, dtype)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        """Transform windows `[B, h, w, C]`; if queries are pooled, the output has fewer cells."""
        batch, height, width, _channels = hidden_states.shape
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)
        if self.stride:
            query = max_pool2d(query.permute(0, 3, 1, 2), self.stride, self.stride).permute(0, 2, 3, 1)
            height, width = query.shape[1:3]
        query, key, value = (
            part.reshape(batch, -1, self.heads, part.shape[-1] // self.heads).transpose(1, 2)
            for part in (query, key, value)
        )
        if query.dtype == torch.bfloat16:
            groups = (part.flatten(0, 1) for part in (query * query.shape[-1] ** -0.5, key, value))
            mixed = attend_in_chunks(*groups).view_as(query)
        else:
            mixed = scaled_dot_product_attention(query, key, value)
        output: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, height, width, -1))
        return output
