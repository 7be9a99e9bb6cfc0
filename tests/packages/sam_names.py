"""The tensors of transformers' SamModel under the names of segment-anything."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors.torch import load_file, save_file

RENAMED = (  # transformers -> the package, tried in this order
    (r"^vision_encoder\.", "image_encoder."),
    (r"^(image_encoder\.)layers\.", r"\1blocks."),
    (r"(blocks\.\d+\.)layer_norm(\d)", r"\1norm\2"),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"neck\.conv1", "neck.0"),
    (r"neck\.layer_norm1", "neck.1"),
    (r"neck\.conv2", "neck.2"),
    (r"neck\.layer_norm2", "neck.3"),
    # one tensor with two names there, saved under the first
    (r"^shared_image_embedding\.", "prompt_encoder.shared_embedding."),
    (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"(mask_decoder\.transformer\.layers\.\d+\.)layer_norm(\d)", r"\1norm\2"),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"((?:iou_prediction_head|mlps\.\d+)\.)layers\.0", r"\1layers.1"),
    (r"((?:iou_prediction_head|mlps\.\d+)\.)proj_in", r"\1layers.0"),
    (r"((?:iou_prediction_head|mlps\.\d+)\.)proj_out", r"\1layers.2"),
)


def package_name(name: str) -> str:
    """The package's name of a tensor."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def carry_across(source: Path, target: Path) -> Path:
    """A folder for the `segment-anything` backend with the weights of a SamModel's folder."""
    weights = {package_name(name): tensor for name, tensor in load_file(source / "model.safetensors").items()}
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps({"model_type": "segment-anything"}), encoding="utf-8")
    return target
