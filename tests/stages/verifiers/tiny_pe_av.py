"""A random PE-AV: the real class at tiny size, saved with its processors like any checkpoint. Needs timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    PeAudioFeatureExtractor,
    PeAudioVideoConfig,
    PeAudioVideoModel,
    PreTrainedTokenizerFast,
)

from tests.tiny_models import widen

EDGE = 32
FRAMES = 4
WORDS = ["dog", "bell", "cat", "barking", "the"]


def make_pe_av(folder: Path, *, seed: int = 0, frames: int | None = FRAMES) -> Path:
    """A PE-AV of 32 pixels that knows a handful of words; its logits differ visibly from pair to pair."""
    tiny_model(seed).save_pretrained(folder)
    PeAudioFeatureExtractor().save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    # As in the published checkpoints; those without a fixed number of frames have no `num_frames`.
    video = {
        "video_processor_type": "PeVideoVideoProcessor",
        "do_sample_frames": True,
        "num_frames": frames,
        "size": {"height": EDGE, "width": EDGE},
        "do_normalize": True,
        "do_resize": True,
        "do_rescale": True,
        "do_convert_rgb": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video), encoding="utf-8")
    return folder


def tiny_model(seed: int = 0) -> PeAudioVideoModel:
    torch.manual_seed(seed)
    model = PeAudioVideoModel(tiny_config()).eval()
    widen(model, 3.0)
    with torch.no_grad():  # both are 0 in a new model, and every logit would be 0
        for name, parameter in model.named_parameters():
            if name.endswith("logit_scale"):
                parameter.fill_(0.1)
            elif name.endswith("logit_bias"):
                parameter.fill_(-0.3)
    return model


def tiny_config() -> PeAudioVideoConfig:
    """All parts of the published configuration, with one layer each."""
    encoder: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    vit = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": EDGE, "ref_feat_shape": (2, 2)}
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_core_tiny_patch16_384",
        "do_pooling": True,
        "num_classes": 16,
        "global_pool": "map",
        "model_args": vit,
    }
    dac = {"model_type": "dac", "encoder_hidden_size": 4, "downsampling_ratios": [2, 8, 10, 12], "codebook_dim": 8}
    text = {
        "model_type": "modernbert",
        "vocab_size": 4 + len(WORDS),
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
    }
    return PeAudioVideoConfig(
        text_config=text,
        audio_video_config={
            **encoder,
            "audio_config": {"model_type": "pe_audio_encoder", "dac_config": dac, **encoder},
            "video_config": {"model_type": "pe_video_encoder", "vision_config": vision, **encoder},
        },
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    ids = {word: i for i, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>"
    )
