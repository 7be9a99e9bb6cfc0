"""Random models of SAM 2, EdgeTAM and SAM 3: the real classes at tiny size, saved like any checkpoint.

Their processors need torchvision, so the preprocessor file is written as the library writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    PreTrainedTokenizerFast,
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam3Config,
    Sam3LiteTextConfig,
    Sam3LiteTextModel,
    Sam3Model,
    Sam3VideoConfig,
    Sam3VideoModel,
)

from tests.tiny_models import widen

SAM2_SIZE = 64
SAM3_SIZE = 64
WORDS = ["a", "the", "dog", "bell", "cat", "barking", "engine"]
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
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
    return _save_seeing(Sam2VideoModel(config), folder)


def _save_seeing(model: Any, folder: Path) -> Path:
    folder = _save(model, folder, {"size": {"height": SAM2_SIZE, "width": SAM2_SIZE}, **IMAGENET})
    with torch.no_grad():  # a random head sees nothing as often as not: this one always sees its thing
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(9.0)
    model.save_pretrained(folder)
    return folder


_REPVIT = {
    "model_type": "timm_wrapper",
    "architecture": "repvit_m1",
    "num_classes": 2,  # that transformers can read its own file
    "model_args": {
        "in_chans": 3,
        "features_only": True,
        "out_indices": [0, 1, 2, 3],
        "embed_dim": [8, 16, 24, 32],
        "depth": [1, 1, 2, 1],
    },
}
_EDGE_VISION = {
    "model_type": "edgetam_vision_model",
    "backbone_config": _REPVIT,
    "backbone_channel_list": [32, 24, 16, 8],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "fpn_hidden_size": _HIDDEN,
}


def make_edgetam(folder: Path, *, seed: int = 0) -> Path:
    """An EdgeTAM image model of the same size. Needs timm."""
    torch.manual_seed(seed)
    config = EdgeTamConfig(vision_config=_EDGE_VISION, prompt_encoder_config=_PROMPT, mask_decoder_config=_DECODER)
    return _save(EdgeTamModel(config), folder, {"size": {"height": SAM2_SIZE, "width": SAM2_SIZE}, **IMAGENET})


def make_edgetam_video(folder: Path, *, seed: int = 0) -> Path:
    """An EdgeTAM video model of the same size; as on the hub, the image model can be loaded from it. Needs timm."""
    torch.manual_seed(seed)
    config = EdgeTamVideoConfig(
        vision_config=_EDGE_VISION,
        prompt_encoder_config=_PROMPT,
        mask_decoder_config=_DECODER,
        image_size=SAM2_SIZE,
        memory_attention_hidden_size=_HIDDEN,
        memory_attention_num_layers=1,
        memory_attention_mlp_hidden_size=64,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_attention_rope_k_sizes=[2, 2],
        perceiver_resampler_num_latents=4,
        perceiver_resampler_num_latents_2d=4,
        perceiver_resampler_num_layers=1,
        memory_encoder_hidden_size=_HIDDEN,
        mask_downsampler_embed_dim=_HIDDEN,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=_HIDDEN,
        memory_fuser_intermediate_dim=64,
    )
    return _save_seeing(EdgeTamVideoModel(config), folder)


_IDS = {word: i for i, word in enumerate(["<pad>", "<unk>", *WORDS, "<s>", "</s>"])}
_DETR = {"hidden_size": _HIDDEN, "num_attention_heads": 2, "num_layers": 1, "intermediate_size": 64}
_SAM3_VISION = {
    "backbone_config": {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SAM3_SIZE,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1],
        "pretrain_image_size": 32,
    },
    "fpn_hidden_size": _HIDDEN,
    "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
}
_SAM3 = {
    "vision_config": _SAM3_VISION,
    "text_config": {
        "model_type": "clip_text_model",
        "vocab_size": len(_IDS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 12,
        "pad_token_id": 0,
        "bos_token_id": _IDS["<s>"],
        "eos_token_id": _IDS["</s>"],
    },
    "geometry_encoder_config": _DETR,
    "detr_encoder_config": _DETR,
    "detr_decoder_config": {**_DETR, "num_queries": 12},
    "mask_decoder_config": {"hidden_size": _HIDDEN, "num_attention_heads": 2, "num_upsampling_stages": 3},
}


def make_sam3(folder: Path, *, seed: int = 0) -> Path:
    """A SAM 3 image model that takes 64 pixels, has 12 queries and knows a few words."""
    torch.manual_seed(seed)
    return _save_sam3(Sam3Model(Sam3Config(**_SAM3)), folder)


def make_sam3_lite_text(folder: Path, *, seed: int = 0) -> Path:
    """The same with the text encoder of SAM 3 LiteText, whose position table is not as long as its texts."""
    torch.manual_seed(seed)
    names = ("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_attention_heads")
    text = {name: _SAM3["text_config"][name] for name in names}
    text |= {"num_hidden_layers": 3, "max_position_embeddings": 40, "layer_scale_init_value": 0.5}
    return _save_sam3(Sam3LiteTextModel(Sam3LiteTextConfig(**(_SAM3 | {"text_config": text}))), folder)


def make_sam3_video(folder: Path, *, seed: int = 0) -> Path:
    """A SAM 3 video model of the same size; as on the hub, the image model can be loaded from it."""
    torch.manual_seed(seed)
    tracker = {
        "vision_config": _SAM3_VISION,
        "prompt_encoder_config": {"hidden_size": _HIDDEN, "image_size": SAM3_SIZE, "patch_size": 8},
        "mask_decoder_config": _DECODER,
        "image_size": SAM3_SIZE,
        "memory_attention_hidden_size": _HIDDEN,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 64,
        "memory_attention_rope_feat_sizes": [8, 8],
        "memory_encoder_hidden_size": _HIDDEN,
        "mask_downsampler_embed_dim": _HIDDEN,
        "memory_fuser_num_layers": 1,
        "memory_fuser_embed_dim": _HIDDEN,
        "memory_fuser_intermediate_dim": 64,
    }
    model = Sam3VideoModel(Sam3VideoConfig(detector_config=_SAM3, tracker_config=tracker, low_res_mask_size=32))
    folder = _save_sam3(model, folder)
    with torch.no_grad():
        model.tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(9.0)
    model.save_pretrained(folder)
    return folder


def _save_sam3(model: Any, folder: Path) -> Path:
    _save(model, folder, {"size": {"height": SAM3_SIZE, "width": SAM3_SIZE}, **HALVES})
    tokenizer = Tokenizer(models.WordLevel(_IDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", _IDS["<s>"]), ("</s>", _IDS["</s>"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def _save(model: Any, folder: Path, settings: dict[str, Any]) -> Path:
    widen(model.eval(), 1.0)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder
