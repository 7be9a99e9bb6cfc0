"""The image encoders of SAM and SAM 2 made lean for a CPU: the library's answers to rounding, in less time.

What is won, and why the answers are the same: linear layers take the processor's fastest kernel, with the activation
that follows; what is computed cell by cell is not computed for the cells that only fill up windows; SAM's relative
positions never become a matrix of their own as large as all scores of a layer; attention goes in pieces that stay in
the cache. Between the products of matrices, which may be in bfloat16, the stream stays in float32. On a GPU the
library's own fused attention is the better choice, and is left alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import max_pool2d, scaled_dot_product_attention, softmax
from transformers.models.sam.modeling_sam import SamVisionLayer
from transformers.models.sam2.modeling_sam2 import Sam2FeedForward, Sam2MultiScaleAttention

from openavs.models.ops.linear import OneDnnLinear, replace_modules

_IN_CACHE = 1 << 18  # scores on one thread: 1 MB of float32, the second-level cache
_OF_A_THREAD = 1 << 21  # on several threads, for which every small operation means to wait for each other
_FOLDED = 32  # cells of an edge: to smaller windows, relative positions are added by the product itself


def prepare_encoder(encoder: nn.Module, body: nn.Module, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Makes a loaded image encoder compute in a dtype, and says in which one it takes its pixels.

    On a CPU all of the encoder is made lean; elsewhere its `body`, which is the encoder or a part of it, is converted.
    """
    if device.type == "cpu":
        optimize_sam(encoder, dtype)
        return torch.float32
    body.to(dtype)
    for module in encoder.modules():
        if isinstance(module, SamVisionLayer) and module.attn.use_rel_pos:
            _remember_positions(module.attn)
    return dtype


def _remember_positions(attention: Any) -> None:
    """Expands the tables of relative positions once: the library does so in each pass, with indices from the CPU."""
    tables = [attention.rel_pos_h, attention.rel_pos_w]
    made = _relative_positions(attention)
    attention.get_rel_pos = lambda _queries, _keys, table: made[0] if table is tables[0] else made[1]


def _relative_positions(attention: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """`[edge, edge, D]` of a query's place and a key's: by rows, and by columns."""
    edge = (len(attention.rel_pos_h) + 1) // 2
    rows, columns = (
        attention.get_rel_pos(edge, edge, table).detach() for table in (attention.rel_pos_h, attention.rel_pos_w)
    )
    return rows, columns


def optimize_sam(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Replaces layers of a loaded image encoder; `dtype` is that of its large products of matrices."""

    def leaner(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, SamVisionLayer):
            return OptimizedSamLayer(module, dtype)
        if isinstance(module, Sam2MultiScaleAttention):
            return HieraAttention(module, dtype)
        if isinstance(module, Sam2FeedForward) and module.num_layers == 2 and not module.sigmoid_output:
            return FeedForward(module.proj_in, module.proj_out, module.activation, dtype)
        return OneDnnLinear(module) if type(module) is nn.Linear else None

    replace_modules(encoder, leaner)


class FeedForward(nn.Module):
    """Two linear layers and what is between them."""

    def __init__(self, first: Any, last: Any, activation: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        fused = type(activation).__name__ == "GELUActivation"
        self.first, self.last = OneDnnLinear(first, dtype, "gelu" if fused else "none"), OneDnnLinear(last, dtype)
        self.activation = nn.Identity() if fused else activation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.last(self.activation(self.first(inputs)))
        return answer


class OptimizedSamLayer(nn.Module):
    """A layer of SAM's image encoder: attention in windows, or of all cells, then a feed-forward network."""

    def __init__(self, library: Any, dtype: torch.dtype) -> None:
        super().__init__()
        attention = library.attn
        self.window, self.heads = library.window_size, attention.num_attention_heads
        self.norm1, self.norm2 = library.layer_norm1, library.layer_norm2
        self.qkv, self.proj = OneDnnLinear(attention.qkv, dtype), OneDnnLinear(attention.proj, dtype)
        self.mlp = FeedForward(library.mlp.lin1, library.mlp.lin2, library.mlp.act, dtype)
        self.rows = self.columns = None
        if attention.use_rel_pos:
            self.rows, self.columns = (
                nn.Parameter(table.to(dtype), requires_grad=False) for table in _relative_positions(attention)
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Cells `[B, h, w, C]` -> the same."""
        batch, height, width, _channels = hidden_states.shape
        qkv = self.qkv(self.norm1(hidden_states))
        edge = self.window or height
        high, wide = (-(-length // edge) for length in (height, width))
        if (high * edge, wide * edge) != (height, width):
            # cells that only fill up a window are zeros after the norm, so their answer is the bias
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
        answer: torch.Tensor = hidden_states + self.mlp(self.norm2(hidden_states))
        return answer

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its pieces would be unrolled
    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, edge: int) -> torch.Tensor:
        """Attention of `[G, edge * edge, D]`, piece by piece.

        A score is `q k / sqrt(D) + q row(y, y') + q column(x, x')`; `q row` is a number for each row of keys.
        """
        scaled = query * query.shape[-1] ** -0.5
        across = down = None
        if self.rows is not None and self.columns is not None:
            grid = query.view(len(query), edge, edge, -1)
            down = torch.einsum("ghwc,hkc->ghwk", grid, self.rows).flatten(1, 2)  # [G, cells, edge]
            across = torch.einsum("ghwc,wkc->ghwk", grid, self.columns).flatten(1, 2)
            if edge < _FOLDED or query.dtype != torch.float32:
                cell = torch.eye(edge, dtype=query.dtype, device=query.device)
                marks = torch.cat(
                    [cell.repeat_interleave(edge, 0), cell.repeat(edge, 1)], -1
                )  # which row, which column
                scaled = torch.cat([scaled, down, across], -1)
                key = torch.cat([key, marks.expand(len(key), -1, -1)], -1)
                across = down = None

        cells, keys, answer = edge * edge, key.transpose(1, 2), torch.empty_like(query)
        threads = torch.get_num_threads()
        at_once = _IN_CACHE if threads == 1 else _OF_A_THREAD * threads
        groups, step = max(at_once // cells**2, 1), max(at_once // cells, 1)
        for first in range(0, len(query), groups):
            some = slice(first, first + groups)
            for start in range(0, cells, step):
                part = (some, slice(start, start + step))
                scores = torch.bmm(scaled[part], keys[some])
                if down is not None and across is not None:
                    by_cell = scores.view(*scores.shape[:2], edge, edge)
                    by_cell.add_(down[part][..., None]).add_(across[part][:, :, None])
                answer[part] = torch.bmm(softmax(scores, dim=-1), value[some])
        return answer


class HieraAttention(nn.Module):
    """Attention in a window of SAM 2's backbone, without the scores that the library computes and drops."""

    def __init__(self, library: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.stride = library.num_attention_heads, library.query_stride
        self.qkv, self.proj = OneDnnLinear(library.qkv, dtype), OneDnnLinear(library.proj, dtype)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        """Windows `[B, h, w, C]` -> the same, or fewer cells where queries are pooled."""
        batch, height, width, _channels = hidden_states.shape
        query, key, value = self.qkv(hidden_states).chunk(3, dim=-1)
        if self.stride:
            query = max_pool2d(query.permute(0, 3, 1, 2), self.stride, self.stride).permute(0, 2, 3, 1)
            height, width = query.shape[1:3]
        query, key, value = (
            part.reshape(batch, -1, self.heads, part.shape[-1] // self.heads).transpose(1, 2)
            for part in (query, key, value)
        )
        mixed = scaled_dot_product_attention(query, key, value)
        answer: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, height, width, -1))
        return answer
