"""Random detectors of the real classes at a tiny size, saved as their checkpoints are: weights, tokenizer, processor.

They know nothing; they are for tests of what an adapter feeds to a model and makes of its answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    OmDetTurboConfig,
    OmDetTurboForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    Owlv2Processor,
    PreTrainedModel,
    SwinConfig,
)

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_BERT_SLOTS = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}


def save_grounding_dino(
    folder: Path, *, mm: bool = False, mean: Sequence[float] = (0.485, 0.456, 0.406), **changes: Any
) -> Path:
    """Saves a random (MM-)Grounding DINO with its processor; `changes` go into the configuration."""
    config_class, model_class = (
        (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection)
        if mm
        else (GroundingDinoConfig, GroundingDinoForObjectDetection)
    )
    tokenizer = bert_tokenizer()
    backbone = SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4, out_indices=[2, 3, 4]
    )
    text = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=changes.get("max_text_len", 256),
    )
    settings: dict[str, Any] = {
        "backbone_config": backbone,
        "text_config": text,
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
        "decoder_layers": 2,
        "decoder_ffn_dim": 64,
        "decoder_attention_heads": 4,
        "num_queries": 50,
        "max_text_len": 256,
    }
    config = config_class(**(settings | changes))
    model = _random(model_class, config)
    model.save_pretrained(folder)
    pictures = GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160}, image_mean=list(mean))
    GroundingDinoProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def save_owlv2(folder: Path) -> Path:
    """Saves a random OWLv2 with its processor."""
    tokenizer = clip_tokenizer()
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = vision | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = Owlv2Config(
        text_config=text, vision_config=vision | {"image_size": 96, "patch_size": 16}, projection_dim=32
    )
    _random(Owlv2ForObjectDetection, config).save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessorPil(size={"height": 96, "width": 96}), tokenizer).save_pretrained(folder)
    return folder


def save_omdet_turbo(folder: Path, *, timm: bool = False) -> Path:
    """Saves a random OmDet-Turbo of 64 x 64 pixels and 20 queries, with transformers' Swin or with timm's Swin-T."""
    tokenizer = clip_tokenizer(max_length=77)
    swin = SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4, out_indices=[2, 3, 4]
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = OmDetTurboConfig(
        backbone_config=None if timm else swin,
        apply_layernorm_after_vision_backbone=timm,
        encoder_in_channels=[192, 384, 768] if timm else [32, 64, 128],
        text_config=text,
        image_size=64,
        num_queries=20,
        text_projection_in_dim=32,
        text_projection_out_dim=32,
        class_embed_dim=32,
        task_encoder_hidden_dim=32,
        vision_features_channels=[16, 16, 16],
        encoder_hidden_dim=16,
        encoder_dim_feedforward=32,
        encoder_attention_heads=2,
        decoder_hidden_dim=16,
        decoder_num_heads=2,
        decoder_num_layers=2,
        decoder_dim_feedforward=32,
    )
    _random(OmDetTurboForObjectDetection, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {  # as the published checkpoint: bytes are not rescaled, and frames become squares
        "image_processor_type": "DetrImageProcessor",
        "size": {"height": 64, "width": 64},
        "do_rescale": False,
        "do_pad": False,
        "image_mean": [123.675, 116.28, 103.53],
        "image_std": [58.395, 57.12, 57.375],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def bert_tokenizer() -> BertTokenizer:
    """A lower-casing word-piece tokenizer of letters and a few words, with BERT's own ids for what a caption needs."""
    words = [*_LETTERS, *(f"##{letter}" for letter in _LETTERS), "dog", "car", "red", "guitar", "an", "a", "-", "犬"]
    tokens = [_BERT_SLOTS.get(i, f"[unused{i}]") for i in range(1037)] + list(dict.fromkeys(words))
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=True)


def clip_tokenizer(max_length: int = 16) -> CLIPTokenizer:
    """A byte-level tokenizer of single characters, 16 tokens long as OWLv2's by default."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    tokens = ["!", *(s for s in symbols if s != "!"), *(f"{s}</w>" for s in symbols), "a b</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=max_length, pad_token="!")


def _random(model_class: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model whose weights are wide enough apart for its boxes and scores to differ from each other."""
    torch.manual_seed(7)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=1.2 / weight.shape[-1] ** 0.5 if weight.ndim == 2 else 0.15)
            elif name.endswith("bias"):
                weight.normal_(std=0.1)
    return model
