"""CLAP, Grounding DINO, SAM and SAM 2 with seeded random weights, saved as their checkpoints are.

What a network costs does not hang on its weights, so random ones do for a bench, and all who run it have the same. A
few are not left as the library draws them (`spread`), so that the detector answers as a trained one does: its boxes and
scores differ from query to query, hang on the picture, and every phrase has queries of its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from networks import detector_config, sam2_vision, sam_vision
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    Sam2Config,
    Sam2Model,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
    SamProcessor,
    SwinConfig,
)

from openavs.structures.types import ImageArray

PHRASES = ("dog", "bell", "car", "cat", "guitar", "horse", "drum", "train", "bird", "man", "boat", "siren")
_BORDERS = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class Size:
    """How large networks and pictures are: the picture, the detector's edges, the segmenter's square."""

    name: str
    picture: tuple[int, int]  # height, width
    edges: tuple[int, int]  # shortest and longest
    square: int
    full: bool  # the published networks, or small ones of the same classes


SMALL = Size("small", (180, 320), (192, 342), 256, full=False)
REDUCED = Size("reduced", (720, 1280), (375, 667), 512, full=True)
REAL = Size("real", (720, 1280), (750, 1333), 1024, full=True)


def save_models(folder: Path, size: Size, segmenter: str, picture: ImageArray, seed: int = 0) -> tuple[Path, Path]:
    """Writes a detector and a segmenter (`sam` or `sam2`); their folders. `picture` is one of those to work on."""
    torch.manual_seed(seed)
    detector = save_detector(folder / "grounding-dino", size, picture)
    make = {"sam": save_sam, "sam2": save_sam2}[segmenter]
    return detector, make(folder / segmenter, size)


def save_detector(folder: Path, size: Size, picture: ImageArray, network: str = "tiny", device: str = "cpu") -> Path:
    """Grounding DINO: with Swin-T (`tiny`) or Swin-B (`base`) and BERT base as published, or a tenth of `tiny`."""
    tokenizer = word_tokenizer()
    if size.full:
        # The vocabulary is a table to look into: its length costs nothing, and every word that is asked is in this one.
        config = detector_config(network)
        config.text_config = BertConfig(vocab_size=len(tokenizer))
    else:
        config = GroundingDinoConfig(**_small_detector(len(tokenizer)))
    with torch.device(device):
        model = GroundingDinoForObjectDetection(config).eval()
    shortest, longest = size.edges
    pictures = GroundingDinoImageProcessorPil(size={"shortest_edge": shortest, "longest_edge": longest})
    processor: Any = GroundingDinoProcessor(pictures, tokenizer)
    example = processor(images=picture, text=". ".join(PHRASES[:3]) + ".", return_tensors="pt")
    spread(model, example.to(device))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _small_detector(words: int) -> dict[str, Any]:
    swin = SwinConfig(
        image_size=64, embed_dim=32, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], window_size=7, out_indices=[2, 3, 4]
    )
    text = BertConfig(
        vocab_size=words, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256
    )
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    return {"backbone_config": swin, "text_config": text, "d_model": 64, "num_queries": 200, **layers, **heads}


def save_sam(folder: Path, size: Size, network: str = "base", device: str = "cpu") -> Path:
    """SAM with ViT-B (`base`), L or H as published, or a small one."""
    square: dict[str, Any] = {"image_size": size.square}
    small = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "global_attn_indexes": [1, 3]}
    vision = square | (sam_vision(network) if size.full else small | {"mlp_dim": 384})
    with torch.device(device):
        model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=square)).eval()
    # Published weights have frequencies of deviation 1 here; the library draws 128 times that, and no box would keep
    # its mask when it moves by a part of a pixel.
    torch.nn.init.normal_(model.shared_image_embedding.positional_embedding)
    model.save_pretrained(folder)
    edges = {"size": {"longest_edge": size.square}, "pad_size": {"height": size.square, "width": size.square}}
    SamProcessor(SamImageProcessorPil(**edges)).save_pretrained(folder)
    return folder


def save_sam2(folder: Path, size: Size, network: str = "tiny", device: str = "cpu") -> Path:
    """SAM 2.1 with the `tiny`, `base-plus` or `large` Hiera as published, or a small one."""
    side = size.square
    vision = sam2_vision(network)
    backbone = vision["backbone_config"] | {"image_size": [side, side]}
    channels = vision["backbone_channel_list"]
    if not size.full:
        channels = [256, 128, 64, 32]
        backbone = {"model_type": "sam2_hiera_det_model", "image_size": [side, side]}
        backbone |= {"blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3], "hidden_size": 32}
        backbone |= {"embed_dim_per_stage": channels[::-1], "num_attention_heads_per_stage": [1, 2, 4, 8]}
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": channels,
        "backbone_feature_sizes": [[side // 4, side // 4], [side // 8, side // 8], [side // 16, side // 16]],
    }
    with torch.device(device):
        model = Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config={"image_size": side})).eval()
    model.save_pretrained(folder)
    settings = {"size": {"height": side, "width": side}, **_IMAGENET}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def save_clap(folder: Path) -> Path:
    """CLAP with HTSAT-tiny and feature fusion, as laion/clap-htsat-fused; the tokenizer is the embedded model's."""
    audio = {"enable_fusion": True, "hidden_size": 768, "patch_embeds_hidden_size": 96, "depths": [2, 2, 6, 2]}
    ClapModel(ClapConfig(audio_config=audio)).eval().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(files("openavs") / "assets" / "tiny" / "clap")
    ClapProcessor(ClapFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def word_tokenizer() -> BertTokenizer:
    """Whole words, with BERT's own ids for what parts the phrases of a caption."""
    tokens = [_BORDERS.get(i, f"[unused{i}]") for i in range(1037)] + list(PHRASES)
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=True)


@torch.no_grad()
def spread(model: Any, example: Any) -> None:
    """Makes answers that hang on the picture, as those of a trained network do, and differ from query to query.

    `example` is what the model is given for a picture of the load.
    """
    for head in {id(head): head for head in (*model.bbox_embed, model.model.encoder_output_bbox_embed)}.values():
        head.layers[-1].weight.normal_(std=0.5 / head.layers[-1].in_features ** 0.5)
        head.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, 0.3, 0.3]))  # larger than an anchor
    # Queries are told from each other by their places alone: which of them gets which is a matter of rounding.
    model.model.query_position_embeddings.weight.zero_()
    for layer in model.model.encoder.layers:
        layer.text_enhancer_layer.layer_norm_after.weight.fill_(1.0 / 16)
    # What all queries share would make one phrase the best of all: it is taken off where scores are read.
    output = model(**example)
    model.model.decoder.layer_norm.bias.sub_(output.last_hidden_state[0].mean(dim=0))
