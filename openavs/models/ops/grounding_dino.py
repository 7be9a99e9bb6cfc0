"""A loaded Grounding DINO made lean for inference: the library's answers to rounding, at a part of its cost.

`make_lean` replaces modules of one loaded model; the library itself stays as it is, and nearly all parameters are the
library's own. The attentions are those of `grounding_dino_attention.py`. Linear layers take the processor's fastest
kernel, with the activation that follows. A caption is read once, however many frames are asked for it.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers.models.grounding_dino import modeling_grounding_dino as plain
from transformers.models.mm_grounding_dino import modeling_mm_grounding_dino as mm
from transformers.models.swin.modeling_swin import SwinMLP

from openavs.models.ops.grounding_dino_attention import DeformableAttention, FusionAttention, TokenAttention
from openavs.models.ops.linear import OneDnnLinear, replace_modules

_DEFORMABLE = (plain.GroundingDinoMultiscaleDeformableAttention, mm.MMGroundingDinoMultiscaleDeformableAttention)
_FUSION = (plain.GroundingDinoBiMultiHeadAttention, mm.MMGroundingDinoBiMultiHeadAttention)
_TOKENS = (plain.GroundingDinoMultiheadAttention, mm.MMGroundingDinoMultiheadAttention)
_FEED_FORWARD = (
    plain.GroundingDinoDeformableLayer,
    plain.GroundingDinoDecoderLayer,
    mm.MMGroundingDinoDeformableLayer,
    mm.MMGroundingDinoDecoderLayer,
    SwinMLP,
)
_ACTIVATIONS = {"ReLU": "relu", "GELUActivation": "gelu"}  # by the name of their class
# What stays in float32: coordinates, the caption, and the few layers whose answer is the stream that others add to.
_EXACT = re.compile("bbox_embed|reference_points_head|text_|fusion_layer|enc_output|reduction")
_CAPTIONS = 64  # whose features are kept: 30 kB each


def optimize_grounding_dino(model: nn.Module, dtype: torch.dtype) -> None:
    """Replaces attentions, linear layers and text encoder of a loaded (MM-)Grounding DINO that is not trained any more.

    `dtype` is the precision of the large products of matrices; between them, and in all that is small and delicate,
    float32 stays.
    """
    network: Any = model
    network.model.text_backbone = CachedTextEncoder(network.model.text_backbone)
    for module in model.modules():
        if isinstance(module, _FEED_FORWARD) and (then := _ACTIVATIONS.get(type(module.activation_fn).__name__)):
            module.fc1, module.activation_fn = OneDnnLinear(module.fc1, dtype, then), nn.Identity()

    def leaner(name: str, module: nn.Module) -> nn.Module | None:
        kind = torch.float32 if _EXACT.search(name) else dtype
        if isinstance(module, _DEFORMABLE):
            return DeformableAttention(module, kind)
        if isinstance(module, _FUSION):
            return FusionAttention(module)
        if isinstance(module, _TOKENS):
            return TokenAttention(module, kind)
        return OneDnnLinear(module, kind) if type(module) is nn.Linear else None

    replace_modules(model, leaner)


class CachedTextEncoder(nn.Module):
    """The library's text encoder, asked once for each caption: frame after frame hears the same words."""

    def __init__(self, library: nn.Module) -> None:
        super().__init__()
        self.library = library
        self._known: dict[tuple[Any, ...], Any] = {}

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: Any, position_ids: Any, **_: Any
    ) -> Any:
        """The encoder's answer to token ids `[B, T]`; the other arguments follow from them."""
        key = tuple(map(tuple, input_ids.tolist()))
        if (answer := self._known.get(key)) is None:
            answer = self.library(input_ids, attention_mask, token_type_ids, position_ids, return_dict=True)
            if len(self._known) >= _CAPTIONS:
                self._known.clear()
            self._known[key] = answer
        return answer
