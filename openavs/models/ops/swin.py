"""Layers of the Swin Transformer for CPUs: the library's results up to rounding, in less time.

The library partitions the image into windows, attends, puts the image together again and then applies the feed-forward
network, each step to the whole image. Every cell is in one window, so here some windows take all steps together, and
what is between the steps stays in the cache. One gather of rows shifts, pads and partitions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import softmax

from openavs.models.ops.linear import FeedForward, inference_linear

Size = tuple[int, int]  # cells: height, width
# Values of the widest activation of the windows that are computed together: on one thread 4 MB of bfloat16, a part of
# the third-level cache; for each of several threads, which synchronize after every operation, more.
_CACHED_VALUES, _THREAD_VALUES = 1 << 21, 1 << 23
_OTHER_REGION = -100.0  # added to scores of cells that only the cyclic shift made neighbors, as in the library


class SwinLayer(nn.Module):
    """Attention within windows, which may be shifted, then a feed-forward network."""

    def __init__(self, library: Any, dtype: torch.dtype) -> None:
        super().__init__()
        attention = library.attention
        self.heads, self.edge, self.shift = attention.num_attention_heads, library.window_size, library.shift_size
        self.norm, self.last_norm = library.layernorm_before, library.layernorm_after
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = nn.Linear(parts[0].in_features, 3 * parts[0].out_features, parts[0].bias is not None, device="meta")
        for name, _ in list(qkv.named_parameters()):
            joined = torch.cat([getattr(part, name).detach() for part in parts])
            setattr(qkv, name, nn.Parameter(joined, requires_grad=False))
        self.qkv, self.proj = inference_linear(qkv, dtype), inference_linear(attention.o_proj, dtype)
        self.mlp = FeedForward(library.mlp.fc1, library.mlp.fc2, library.mlp.activation_fn, dtype)
        activations = torch.float32 if dtype == torch.qint8 else dtype
        positions = attention.relative_position_bias().detach().to(activations)  # [1, heads, cells, cells]
        self.positions = nn.Parameter(positions, requires_grad=False)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # its loop would be unrolled
    def forward(self, hidden_states: torch.Tensor, input_dimensions: Size, **_: Any) -> tuple[torch.Tensor, None]:
        """Transform cells `[B, h * w, C]` of images `(h, w)`."""
        batch, count, channels = hidden_states.shape
        rows, regions = partition(*input_dimensions, self.edge, self.shift)
        step = _windows_together(self.edge**2 * 4 * channels)
        output = hidden_states.new_empty((batch, count + 1, channels))  # the last row is that of all padding
        for image, written in zip(hidden_states, output, strict=True):
            for own, region in zip(torch.split(rows, step), torch.split(regions, step), strict=True):
                cells = image[own.clamp(max=count - 1)]
                inputs = self.norm(cells).masked_fill_((own == count)[..., None], 0.0)
                cells = cells + self._attend(inputs, region)
                cells += self.mlp(self.last_norm(cells))
                written[own] = cells
        return output[:, :count], None

    def _attend(self, inputs: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """Compute attention within windows `[W, cells, C]`; only cells of one region attend to each other."""
        windows, count, channels = inputs.shape
        split = self.qkv(inputs).view(windows, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = split.reshape(3, windows * self.heads, count, -1).unbind(0)
        scores = torch.bmm(query * query.shape[-1] ** -0.5, key.transpose(1, 2)).view(windows, self.heads, count, -1)
        scores += self.positions
        if self.shift:
            scores += _OTHER_REGION * (regions[:, None, :, None] != regions[:, None, None, :])
        mixed = torch.bmm(softmax(scores, dim=-1).flatten(0, 1), value).view(windows, self.heads, count, -1)
        output: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(windows, count, channels))
        return output


def _windows_together(values: int) -> int:
    """Return how many windows are computed together; `values` is the size of the widest activation of one."""
    threads = torch.get_num_threads()
    return max((_CACHED_VALUES if threads == 1 else _THREAD_VALUES * threads) // values, 1)


@lru_cache(maxsize=32)
def partition(height: int, width: int, edge: int, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Partition an image into windows after a cyclic shift.

    Returns:
        The row of each cell in each window's order, `[windows, cells]`; `height * width` for cells that pad the image.
        The region of each cell: cells that the shift brought together from opposite borders are in different ones.
    """
    high, wide = (-(-length // edge) * edge for length in (height, width))
    rows = torch.full((high, wide), height * width)
    rows[:height, :width] = torch.arange(height * width).view(height, width)
    y, x = (
        (torch.arange(length) >= length - edge).long() + (torch.arange(length) >= length - shift).long()
        for length in (high, wide)
    )
    regions = 3 * y[:, None] + x
    shifted = rows.roll((-shift, -shift), (0, 1))
    in_windows = torch.stack([shifted, regions]).view(2, high // edge, edge, wide // edge, edge).transpose(2, 3)
    found = in_windows.reshape(2, -1, edge * edge)
    return found[0], found[1]
