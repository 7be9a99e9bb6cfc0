"""Optimized modules of Grounding DINO for inference: the library's results up to rounding, at a fraction of the cost.

`optimize_grounding_dino` replaces modules of one loaded model; nearly all parameters are the library's own. Linear
layers use the processor's fastest kernel, with a fused activation, and a caption is encoded once for all frames. The
attention classes have the parameters and `forward` arguments of the library's, and return no attention weights.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, softmax
from transformers.models.grounding_dino import modeling_grounding_dino as plain
from transformers.models.mm_grounding_dino import modeling_mm_grounding_dino as mm
from transformers.models.swin.modeling_swin import SwinLayer as LibrarySwinLayer, SwinMLP

from openavs.models.ops.deformable_attention import (
    SamplingLayout,
    build_layout,
    chunk_size,
    pad_levels,
    sample_values,
)
from openavs.models.ops.linear import (
    FUSED_ACTIVATIONS,
    FeedForward,
    inference_linear,
    onednn_linear,
    replace_modules,
)
from openavs.models.ops.swin import SwinLayer

_DEFORMABLE = (plain.GroundingDinoMultiscaleDeformableAttention, mm.MMGroundingDinoMultiscaleDeformableAttention)
_ENCODER_LAYERS = (plain.GroundingDinoDeformableLayer, mm.MMGroundingDinoDeformableLayer)
_FUSION = (plain.GroundingDinoFusionLayer, mm.MMGroundingDinoFusionLayer)
_TOKENS = (plain.GroundingDinoMultiheadAttention, mm.MMGroundingDinoMultiheadAttention)
_FEED_FORWARD = (
    plain.GroundingDinoDeformableLayer,
    plain.GroundingDinoDecoderLayer,
    mm.MMGroundingDinoDeformableLayer,
    mm.MMGroundingDinoDecoderLayer,
    SwinMLP,
)
# Modules that stay in float32: coordinates, the caption, and layers that write the residual stream.
_EXACT = re.compile("bbox_embed|reference_points_head|text_|fusion_layer|enc_output|reduction")
_MAX_CAPTIONS = 64  # cached features, 30 kB each


def optimize_grounding_dino(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace attention, linear layers and text encoder of a loaded (MM-)Grounding DINO, for inference only.

    `dtype` is that of the large matrix products, `torch.qint8` for `Int8Linear`; between them, and in small and
    sensitive modules, it is float32.
    """
    network: Any = model
    network.model.text_backbone = CachedTextEncoder(network.model.text_backbone)

    def whole_layer(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, LibrarySwinLayer):
            return SwinLayer(module, dtype)
        return EncoderLayer(module, dtype) if isinstance(module, _ENCODER_LAYERS) else None

    if network.device.type == "cpu":
        replace_modules(model, whole_layer)
    for module in model.modules():
        if isinstance(module, _FEED_FORWARD) and (
            activation := FUSED_ACTIVATIONS.get(type(module.activation_fn).__name__)
        ):
            module.fc1, module.activation_fn = inference_linear(module.fc1, dtype, activation), nn.Identity()

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        own_dtype = torch.float32 if _EXACT.search(name) else dtype
        if isinstance(module, _DEFORMABLE):
            return DeformableAttention(module, own_dtype)
        if isinstance(module, _FUSION):
            return FusionLayer(module)
        if isinstance(module, _TOKENS):
            return TokenAttention(module, own_dtype)
        return inference_linear(module, own_dtype) if type(module) is nn.Linear else None

    replace_modules(model, replacement)


class CachedTextEncoder(nn.Module):
    """The library's text encoder with a cache, since all frames of a clip have the same caption."""

    def __init__(self, library: nn.Module) -> None:
        super().__init__()
        self.library = library
        self._cache: dict[tuple[Any, ...], Any] = {}

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: Any, position_ids: Any, **_: Any
    ) -> Any:
        """Encode token ids `[B, T]`, which determine the other arguments."""
        key = tuple(map(tuple, input_ids.tolist()))
        if (output := self._cache.get(key)) is None:
            output = self.library(input_ids, attention_mask, token_type_ids, position_ids, return_dict=True)
            if len(self._cache) >= _MAX_CAPTIONS:
                self._cache.clear()
            self._cache[key] = output
        return output


class DeformableAttention(nn.Module):
    """Attention of queries to a few points of a feature pyramid (`openavs/models/ops/deformable_attention.py`)."""

    def __init__(self, library: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.levels, self.points = library.n_heads, library.n_levels, library.n_points
        self.value, self.output = (
            inference_linear(library.value_proj, dtype),
            inference_linear(library.output_proj, dtype),
        )
        offsets, shares = library.sampling_offsets, library.attention_weights
        columns = self.heads * self.levels * self.points

        def split(tensor: torch.Tensor) -> torch.Tensor:  # from x and y of each point in turn to all x, then all y
            return tensor.view(columns, 2, -1).transpose(0, 1).reshape(2 * columns, -1)

        query = nn.Linear(offsets.in_features, 3 * columns, device="meta")
        query.weight = nn.Parameter(torch.cat([split(offsets.weight), shares.weight]).detach(), False)
        query.bias = nn.Parameter(torch.cat([split(offsets.bias).flatten(), shares.bias]).detach(), False)
        self.query = inference_linear(query, dtype)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        position_embeddings: torch.Tensor | None = None,
        reference_points: torch.Tensor | None = None,
        spatial_shapes_list: Any = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attend from queries `[B, Q, C]` to a pyramid `[B, S, C]`: `[B, Q, C]`; arguments as in the library."""
        assert encoder_hidden_states is not None and reference_points is not None  # as the library always passes
        if position_embeddings is not None:
            hidden_states = hidden_states + position_embeddings
        tables, layout = self.tables(encoder_hidden_states, attention_mask, spatial_shapes_list)
        images = zip(hidden_states, reference_points, tables, strict=True)
        return torch.stack([self.attend(*image, layout) for image in images]), None

    def tables(self, cells: torch.Tensor, mask: torch.Tensor | None, sizes: Any) -> tuple[torch.Tensor, SamplingLayout]:
        """Return the values of a pyramid's cells `[B, S, C]`, see `pad_levels`; where the mask is False, they are 0."""
        value: torch.Tensor = self.value(cells)
        if mask is not None:
            value = value.masked_fill_(~mask[..., None], 0.0)
        layout = build_layout(tuple(map(tuple, sizes)), self.heads, self.points, value.device)
        return pad_levels(value, layout, self.heads), layout

    def attend(
        self, queries: torch.Tensor, references: torch.Tensor, table: torch.Tensor, layout: SamplingLayout
    ) -> torch.Tensor:
        """Attend from queries `[Q, C]` around points or boxes `[Q, levels, 2 or 4]` to the table of an image."""
        projected = self.query(queries).float().view(len(queries), 3, -1)
        weights = softmax(projected[:, 2].view(len(queries), self.heads, -1), dim=-1).flatten(1)
        positions = self._positions(projected[:, :2], references.float(), layout)
        output: torch.Tensor = self.output(sample_values(table, positions, weights, layout, self.heads))
        return output

    def _positions(self, offsets: torch.Tensor, references: torch.Tensor, layout: SamplingLayout) -> torch.Tensor:
        """Convert offsets `[Q, 2, columns]` and points or boxes `[Q, levels, 2 or 4]` to positions in cells."""

        def by_column(by_level: torch.Tensor) -> torch.Tensor:  # [Q, levels, 2] to [Q, 2, columns]
            return by_level.transpose(1, 2) @ layout.level_columns

        centers = by_column(references[..., :2] * layout.edges - 0.5)
        if references.shape[-1] == 4:  # offsets are relative to half a box
            offsets = offsets * by_column(references[..., 2:] * layout.edges * (0.5 / self.points))
        return centers.add_(offsets)


class EncoderLayer(nn.Module):
    """Deformable attention among the cells of an image, then a feed-forward network, for CPUs.

    Once the values of the pyramid are known, every cell is computed alone. Some cells take all steps together, so that
    what is between the steps stays in the cache.
    """

    def __init__(self, library: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention = DeformableAttention(library.self_attn, dtype)
        self.feed_forward = FeedForward(library.fc1, library.fc2, library.activation_fn, dtype)
        self.norm, self.final_norm = library.self_attn_layer_norm, library.final_layer_norm

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        position_embeddings: torch.Tensor,
        reference_points: torch.Tensor,
        spatial_shapes_list: Any,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Transform cells `[B, S, C]`; arguments as in the library."""
        tables, layout = self.attention.tables(hidden_states, attention_mask, spatial_shapes_list)
        output, step = torch.empty_like(hidden_states), chunk_size(hidden_states.device)
        tensors = (hidden_states, position_embeddings, reference_points, output)
        for image, table in enumerate(tables):
            parts = zip(*(torch.split(tensor[image], step) for tensor in tensors), strict=True)
            for cells, places, references, written in parts:
                mixed = self.norm(cells + self.attention.attend(cells + places, references, table, layout))
                written.copy_(self.final_norm(mixed + self.feed_forward(mixed)))
        return output, None


class FusionLayer(nn.Module):
    """Attention between the cells of an image and the tokens of a caption, in both directions, in float32.

    The library projects every cell to 1024 channels three times. Here the matrix products are reordered: a head's
    scores `(X Wq + bq) K'` are `X (Wq K') + bq K'`, with a matrix as narrow as the caption, and since the weights `P`
    of a row sum to one, `P (X Wv + bv)` is `(P X) Wv + bv`. A cell is then multiplied with heads x tokens columns, 40
    for a short caption. The library's shift and clamp of the scores do not change the softmax. Scale and bias of the
    output are part of the narrow matrix, too, so that one product adds everything to the cells.
    """

    def __init__(self, library: Any) -> None:
        super().__init__()
        attention = library.attn
        self.heads, self.scale = attention.num_heads, attention.scale
        self.cell_norm, self.token_norm = library.layer_norm_vision, library.layer_norm_text
        self.cell_scale, self.token_scale = library.vision_param, library.text_param
        self.query: nn.Linear = attention.vision_proj
        self.key: nn.Linear = attention.text_proj
        self.cell_value: nn.Linear = attention.values_vision_proj
        self.token_value: nn.Linear = attention.values_text_proj
        self.cell_output: nn.Linear = attention.out_vision_proj
        self.token_output: nn.Linear = attention.out_text_proj

    def forward(
        self,
        vision_features: torch.Tensor,
        text_features: torch.Tensor,
        attention_mask_vision: torch.Tensor,
        attention_mask_text: torch.Tensor | None = None,
    ) -> tuple[tuple[torch.Tensor, None], tuple[torch.Tensor, None]]:
        """Update cells `[B, N, C]` and tokens `[B, T, C]`; masks are True for padding."""
        cells, tokens = self.cell_norm(vision_features), self.token_norm(text_features)
        no_token = [None] * len(tokens) if attention_mask_text is None else attention_mask_text
        images = zip(cells, tokens, attention_mask_vision, no_token, strict=True)
        found = torch.stack([self._fuse(*image) for image in images])
        return (cells, None), (tokens + self.token_scale * found, None)

    def _fuse(
        self, cells: torch.Tensor, tokens: torch.Tensor, no_cell: torch.Tensor, no_token: torch.Tensor | None
    ) -> torch.Tensor:
        """Add what cells `[N, C]` find in tokens `[T, C]` in place; return what the tokens find, `[T, C]`."""
        keys = self._heads(self.key(tokens)) * self.scale  # [h, T, D]
        narrow = keys @ self._heads(self.query.weight.t()).transpose(1, 2)  # [h, T, C]
        shift = keys @ self._heads(self.query.bias[None]).transpose(1, 2)
        scores = onednn_linear(cells, narrow.flatten(0, 1), shift.flatten()).t().contiguous()  # [h * T, N]
        scores = scores.view(self.heads, -1, len(cells))

        to_tokens = softmax(scores.masked_fill(no_cell, float("-inf")), dim=-1).flatten(0, 1)
        means = (to_tokens @ cells).view(*scores.shape[:2], -1)  # [h, T, C]
        gathered = means @ self._heads(self.cell_value.weight.t()) + self._heads(self.cell_value.bias[None])
        if no_token is not None:
            scores.masked_fill_(no_token[:, None], float("-inf"))
        values = self._heads(self.token_value(tokens)) @ self._heads(self.cell_output.weight).transpose(1, 2)
        values[0] += self.cell_output.bias  # once, since a head's weights sum to one
        cells.addmm_(softmax(scores, dim=1).flatten(0, 1).t(), (values * self.cell_scale).flatten(0, 1))
        output: torch.Tensor = self.token_output(gathered.transpose(0, 1).flatten(1))
        return output

    def _heads(self, features: torch.Tensor) -> torch.Tensor:
        """Reshape `[N, h * D]` to `[h, N, D]`."""
        return features.reshape(len(features), self.heads, -1).transpose(0, 1)


class TokenAttention(nn.Module):
    """Fused attention among queries and tokens."""

    def __init__(self, library: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = library.num_attention_heads
        self.query, self.key, self.value, self.output = (
            inference_linear(layer, dtype) for layer in (library.query, library.key, library.value, library.out_proj)
        )

    def forward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool | None = False,
    ) -> tuple[Any, ...]:
        """Attend from queries `[B, Q, C]` to keys and values `[B, K, C]`: `[B, Q, C]`; the mask is additive."""
        query, key, value = (
            self._heads(self.query(queries)),
            self._heads(self.key(keys)),
            self._heads(self.value(values)),
        )
        if attention_mask is not None:
            attention_mask = attention_mask.to(query.dtype)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        output = self.output(mixed.transpose(1, 2).flatten(2))
        return (output, None) if output_attentions else (output,)

    def _heads(self, features: torch.Tensor) -> torch.Tensor:
        return features.view(*features.shape[:2], self.heads, -1).transpose(1, 2)
