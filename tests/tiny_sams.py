"""Random SAM 2 (image and video) and SAM 3 models: the real classes at tiny size, saved like any checkpoint.

Their processors need torchvision, so the preprocessor file is written as the library writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

from tests.tiny_models import widen

SAM2_SIZE = 64
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

_HIDDEN = 128  # the video model's rotary attention takes no less
_BACKBONE = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 16,
    "image_size": [SAM2_SIZE, SAM2_SIZE],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [16, 32, 64, 128],
    "num_attention_heads_per_stage": [1, 1, 2, 4],
    "window_size_per_stage": [4, 4, 4, 2],
    "window_positional_embedding_background_size": [4, 4],
    "global_attention_blocks": [3],
}
_VISION = {
    "backbone_config": _BACKBONE,
    "backbone_channel_list": [128, 64, 32, 16],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "fpn_hidden_size": _HIDDEN,
}
_PROMPT = {"hidden_size": _HIDDEN, "image_size": SAM2_SIZE, "patch_size": 16}
_DECODER = {"hidden_size": _HIDDEN, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}


def make_sam2(folder: Path, *, seed: int = 0) -> Path:
    """A SAM 2 image model that takes 64 pixels and answers masks of 16."""
    torch.manual_seed(seed)
    config = Sam2Config(vision_config=_VISION, prompt_encoder_config=_PROMPT, mask_decoder_config=_DECODER)
    return _save(Sam2Model(config), folder, {"size": {"height": SAM2_SIZE, "width": SAM2_SIZE}, **IMAGENET})


def make_sam2_video(folder: Path, *, seed: int = 0) -> Path:
    """A SAM 2 video model of the same size; as on the hub, the image model can be loaded from it."""
    torch.manual_seed(seed)
    config = Sam2VideoConfig(
        vision_config=_VISION,
        prompt_encoder_config=_PROMPT,
        mask_decoder_config=_DECODER,
        image_size=SAM2_SIZE,
        memory_attention_hidden_size=_HIDDEN,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=64,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=_HIDDEN,
        mask_downsampler_embed_dim=_HIDDEN,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=_HIDDEN,
        memory_fuser_intermediate_dim=64,
    )
    model = Sam2VideoModel(config)
    folder = _save(model, folder, {"size": {"height": SAM2_SIZE, "width": SAM2_SIZE}, **IMAGENET})
    with torch.no_grad():  # a random head sees nothing as often as not: this one always sees its thing
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(9.0)
    model.save_pretrained(folder)
    return folder


def _save(model: Any, folder: Path, settings: dict[str, Any]) -> Path:
    widen(model.eval(), 1.0)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
