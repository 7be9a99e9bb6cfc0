"""The tensors of transformers' GroundingDinoForObjectDetection under the names of groundingdino-py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GroundingDinoForObjectDetection

RENAMED = (  # transformers -> the package, all tried in this order
    (r"^model\.backbone\.conv_encoder\.model\.(swin\.)?", "backbone.0."),
    (r"^backbone\.0\.embeddings\.patch_embeddings\.projection", "backbone.0.patch_embed.proj"),
    (r"^backbone\.0\.embeddings\.norm", "backbone.0.patch_embed.norm"),
    (r"^backbone\.0\.encoder\.", "backbone.0."),
    (r"^backbone\.0\.hidden_states_norms\.stage2", "backbone.0.norm1"),
    (r"^backbone\.0\.hidden_states_norms\.stage3", "backbone.0.norm2"),
    (r"^backbone\.0\.hidden_states_norms\.stage4", "backbone.0.norm3"),
    (r"attention\.(q|k|v)_proj\.(weight|bias)", r"attn.qkv.\2"),
    (r"attention\.o_proj", "attn.proj"),
    (r"attention\.relative_position_bias\.relative", "attn.relative"),
    (r"(blocks\.\d+\.)layernorm_before", r"\1norm1"),
    (r"(blocks\.\d+\.)layernorm_after", r"\1norm2"),
    (r"^model\.input_proj_vision\.", "input_proj."),
    (r"^model\.text_backbone\.", "bert."),
    (r"^model\.text_projection\.", "feat_map."),
    (r"^model\.query_position_embeddings\.", "transformer.tgt_embed."),
    (r"^model\.encoder_output_bbox_embed\.", "transformer.enc_out_bbox_embed."),
    (r"^model\.decoder\.reference_points_head\.", "transformer.decoder.ref_point_head."),
    (r"^model\.decoder\.layer_norm\.", "transformer.decoder.norm."),
    (r"^model\.encoder\.layers\.(\d+)\.text_enhancer_layer\.", r"transformer.encoder.text_layers.\1."),
    (r"^model\.encoder\.layers\.(\d+)\.fusion_layer\.", r"transformer.encoder.fusion_layers.\1."),
    (r"^model\.encoder\.layers\.(\d+)\.deformable_layer\.", r"transformer.encoder.layers.\1."),
    (r"^model\.", "transformer."),  # what is left: encoder output, level embedding, decoder
    (r"(text_layers\.\d+\.)layer_norm_before", r"\1norm1"),
    (r"(text_layers\.\d+\.)layer_norm_after", r"\1norm2"),
    (r"vision_param", "gamma_v"),
    (r"text_param", "gamma_l"),
    (r"layer_norm_vision", "layer_norm_v"),
    (r"layer_norm_text", "layer_norm_l"),
    (r"(fusion_layers\.\d+\.attn\.)(values_|out_)?vision_proj", r"\1\2v_proj"),
    (r"(fusion_layers\.\d+\.attn\.)(values_|out_)?text_proj", r"\1\2l_proj"),
    (r"(transformer\.encoder\.layers\.\d+\.)self_attn_layer_norm", r"\1norm1"),
    (r"(transformer\.encoder\.layers\.\d+\.)final_layer_norm", r"\1norm2"),
    (r"(transformer\.decoder\.layers\.\d+\.)encoder_attn_text_layer_norm", r"\1catext_norm"),
    (r"(transformer\.decoder\.layers\.\d+\.)encoder_attn_layer_norm", r"\1norm1"),
    (r"(transformer\.decoder\.layers\.\d+\.)self_attn_layer_norm", r"\1norm2"),
    (r"(transformer\.decoder\.layers\.\d+\.)final_layer_norm", r"\1norm3"),
    (r"(transformer\.decoder\.layers\.\d+\.)encoder_attn_text\.", r"\1ca_text."),
    (r"(transformer\.decoder\.layers\.\d+\.)encoder_attn\.", r"\1cross_attn."),
    (r"((?:text_layers\.\d+\.|decoder\.layers\.\d+\.)(?:self_attn|ca_text)\.)(query|key|value)\.(.*)", r"\1in_proj_\3"),
    (r"(transformer\.\w+\.(?:text_)?layers\.\d+\.)fc(\d)", r"\1linear\2"),
)


def package_name(name: str) -> str:
    """The package's name of a tensor, or of the tensor that it is one third of."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def carry_across(source: Path, target: Path, settings: dict[str, Any]) -> Path:
    """A folder for the `groundingdino-py` backend with the weights of a GroundingDinoForObjectDetection's folder."""
    parts: dict[str, list[torch.Tensor]] = {}
    model = GroundingDinoForObjectDetection.from_pretrained(source)
    for name, tensor in model.state_dict().items():  # queries come before keys, keys before values
        parts.setdefault(package_name(name), []).append(tensor)
    weights = {name: torch.cat(tensors) if len(tensors) == 3 else tensors[0].clone() for name, tensors in parts.items()}
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps({"model_type": "groundingdino", **settings}), encoding="utf-8")
    return target
