"""Tiny OV-AVSS and CLIP models: the real classes with random weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ResNetConfig, SwinConfig

from openavs.training.base import StudentBatch
from openavs.training.models.ov_avss.config import OvAvssConfig
from openavs.training.models.ov_avss.model import OvAvss
from openavs.training.models.ov_avss.network import OvAvssNetwork
from tests.tiny_models import widen

STAGES = ["stage1", "stage2", "stage3", "stage4"]
CLIP_SIDE = 32
SMALL: dict[str, Any] = {
    "backbone": "resnet_tiny",
    "channels": 32,
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_ffn": 64,
    "decoder_ffn": 64,
    "queries": 6,
    "points": 64,
    "sides": [64],
    "test_image_size": 64,
    "clip": None,
}


def mask2former_options(backbone: str = "resnet") -> dict[str, Any]:
    resnet = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    swin = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 4}
    made = (
        ResNetConfig(**resnet, out_features=STAGES) if backbone == "resnet" else SwinConfig(**swin, out_features=STAGES)
    )
    return {
        "backbone_config": made,
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 64,
        "dim_feedforward": 64,
        "encoder_layers": 1,
        "decoder_layers": 4,
        "num_attention_heads": 4,
        "num_queries": 6,
    }


def tiny_network(backbone: str = "resnet", seed: int = 0, **options: Any) -> OvAvssNetwork:
    """Build a network with large weights, so that outputs differ clearly between inputs."""
    torch.manual_seed(seed)
    network = OvAvssNetwork(OvAvssConfig(**mask2former_options(backbone) | options)).eval()
    widen(network, 1.0)
    return network


def tiny_student(**settings: Any) -> OvAvss:
    torch.manual_seed(0)
    student = OvAvss.build(SMALL | settings).eval()
    widen(student, 1.0)
    return student


def inputs(clips: int = 1, frames: int = 5, size: tuple[int, int] = (64, 96)) -> list[torch.Tensor]:
    """Frames and audio features of random clips."""
    generator = torch.Generator().manual_seed(0)
    shapes = (clips, frames, 3, *size), (clips, frames, 128)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def batch(clips: list[tuple[int, tuple[int, int]]], *, labeled: list[list[int]] | None = None) -> StudentBatch:
    """Random clips of (frames, frame size), padded like `collate`; predictions have twice the size."""
    generator = torch.Generator().manual_seed(1)
    count = max(n for n, _ in clips)
    height, width = (-(-max(size[i] for _, size in clips) // 32) * 32 for i in (0, 1))
    frames = torch.zeros(len(clips), count, 3, height, width, dtype=torch.uint8)
    masks = torch.zeros(len(clips), count, height, width, dtype=torch.uint8)
    audio, present = torch.zeros(len(clips), count, 128), torch.zeros(len(clips), count, dtype=torch.bool)
    known = torch.zeros(len(clips), count, dtype=torch.bool)
    for i, (n, (h, w)) in enumerate(clips):
        frames[i, :n, :, :h, :w] = torch.randint(256, (n, 3, h, w), generator=generator, dtype=torch.uint8)
        audio[i, :n] = torch.rand(n, 128, generator=generator)
        present[i, :n] = True
        known[i, labeled[i] if labeled else list(range(n))] = True
        masks[i, known[i], : h // 2, : w // 2] = 3
        masks[i, known[i], h // 2 : h, w // 2 : w] = 7
    return StudentBatch(
        ids=tuple(f"clip{i}" for i in range(len(clips))),
        frames=frames,
        audio=audio,
        present=present,
        masks=masks,
        labeled=known,
        weight=known.float(),
        inner=tuple(size for _, size in clips),
        sizes=tuple((2 * h, 2 * w) for _, (h, w) in clips),
    )


def make_clip(folder: Path, words: list[str]) -> Path:
    """Save a CLIP for images of 32 pixels with these words."""
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *words])}
    text = {"vocab_size": len(vocabulary), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 1}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": CLIP_SIDE, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    torch.manual_seed(0)
    widen(model, 3.0)  # crops and names get different embeddings
    with torch.no_grad():
        model.logit_scale.fill_(math.log(30.0))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder
