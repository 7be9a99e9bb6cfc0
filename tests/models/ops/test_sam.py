"""Optimized image encoders against the library's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import Sam2HieraDetConfig, Sam2MaskDecoderConfig, Sam2VisionConfig, Sam2VisionModel, SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionAttention, SamVisionEncoder
from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder

from openavs.models.ops.linear import Int8Linear, OneDnnLinear, supports_int8
from openavs.models.ops.sam import attend_in_chunks, optimize_decoder, optimize_sam, prepare_encoder


def sam(edge: int, relative: bool = True, window: int = 5, biases: bool = True) -> Any:
    """A random encoder of `edge` x `edge` cells: two layers in windows, one of all cells."""
    torch.manual_seed(0)
    config = SamVisionConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, mlp_dim=128, output_channels=16,
        image_size=8 * edge, patch_size=8, window_size=window, global_attn_indexes=[1],
        use_rel_pos=relative, num_pos_feats=8, qkv_bias=biases,
    )  # fmt: skip
    return widened(SamVisionEncoder(config))


def hiera() -> Any:
    """A random backbone of SAM 2 with windows, a global layer and pooled queries."""
    torch.manual_seed(0)
    backbone = Sam2HieraDetConfig(
        hidden_size=16, num_attention_heads=1, image_size=[128, 128], blocks_per_stage=[1, 2, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128], num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 6, 2], global_attention_blocks=[4],
        window_positional_embedding_background_size=[7, 7],
    )  # fmt: skip
    sizes = [[32, 32], [16, 16], [8, 8]]
    config = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=sizes,
        fpn_hidden_size=32,
    )
    return widened(Sam2VisionModel(config))


def widened(model: Any) -> Any:
    """A model whose attention and relative positions matter."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.7 / weight.shape[-1] ** 0.5 if weight.ndim == 2 else 0.1)
    return model.eval().requires_grad_(False)


def pixels(model: Any, batch: int = 2) -> torch.Tensor:
    edge = 128 if isinstance(model, Sam2VisionModel) else model.image_size
    return torch.randn(batch, 3, edge, edge, generator=torch.Generator().manual_seed(1))


def levels(model: Any, asked: torch.Tensor) -> list[torch.Tensor]:
    answer = model(asked)
    return list(answer.fpn_hidden_states) if isinstance(model, Sam2VisionModel) else [answer.last_hidden_state]


ENCODERS = {
    "sam": lambda: sam(12),
    "sam, windows that fit": lambda: sam(10),
    "sam, no relative positions": lambda: sam(12, relative=False),
    "sam, no biases": lambda: sam(12, biases=False),
    "sam, a global layer of many cells": lambda: sam(36, window=14),
    "sam 2": hiera,
}


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_the_answer_is_the_librarys(name: str) -> None:
    library = ENCODERS[name]()
    lean = copy.deepcopy(library)
    optimize_sam(lean, torch.float32)
    assert not any(type(module) is torch.nn.Linear for module in lean.modules())
    for ours, theirs in zip(levels(lean, pixels(library)), levels(library, pixels(library)), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", ENCODERS)
@torch.inference_mode()
def test_bfloat16_is_as_good_as_torchs_own_mixed_precision(name: str) -> None:
    library = ENCODERS[name]()
    lean = copy.deepcopy(library)
    assert prepare_encoder(lean, lean, torch.bfloat16, torch.device("cpu")) == torch.float32
    assert torch.bfloat16 in {module.weight.dtype for module in lean.modules() if isinstance(module, OneDnnLinear)}
    asked = pixels(library)
    exact, ours = levels(library, asked), levels(lean, asked)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = levels(library, asked)
    assert ours[-1].dtype == torch.float32
    assert (ours[-1] - exact[-1]).abs().mean() < 1.1 * (rounded[-1] - exact[-1]).abs().mean()


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.skipif(not supports_int8(), reason="this build of torch has no 8-bit product")
@torch.inference_mode()
def test_eight_bits_are_near_the_library(name: str) -> None:
    library = ENCODERS[name]()
    quantized = copy.deepcopy(library)
    assert prepare_encoder(quantized, quantized, torch.qint8, torch.device("cpu")) == torch.float32
    assert any(isinstance(module, Int8Linear) for module in quantized.modules())
    for ours, exact in zip(levels(quantized, pixels(library)), levels(library, pixels(library)), strict=True):
        assert (ours - exact).norm() < 0.05 * exact.norm()


def test_elsewhere_than_on_a_cpu_the_body_is_converted_as_it_is() -> None:
    encoder = sam(10)
    assert prepare_encoder(encoder, encoder.layers, torch.bfloat16, torch.device("meta")) == torch.bfloat16
    assert {weight.dtype for weight in encoder.layers.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in encoder.neck.parameters()} == {torch.float32}
    assert not any(isinstance(module, OneDnnLinear) for module in encoder.modules())


@torch.inference_mode()
@pytest.mark.parametrize(("groups", "queries", "keys"), [(5, 16, 64), (2, 300, 4096)], ids=["pooled windows", "global"])
def test_attention_in_chunks_is_that_of_torch(groups: int, queries: int, keys: int) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(groups, count, 24, generator=draw) for count in (queries, keys, keys))
    expected = scaled_dot_product_attention(query, key, value)
    assert torch.allclose(attend_in_chunks(query * 24**-0.5, key, value), expected, atol=1e-5)
    low = attend_in_chunks(*(part.bfloat16() for part in (query * 24**-0.5, key, value)))
    assert float((low.float() - expected).norm() / expected.norm()) < 0.02


def test_an_image_does_not_depend_on_its_batch() -> None:
    lean = sam(12)
    optimize_sam(lean, torch.float32)
    asked = pixels(lean, 3)
    (together,), (alone,) = levels(lean, asked), levels(lean, asked[2:])
    assert torch.allclose(together[2:], alone, atol=1e-5 * float(alone.abs().max()))


def test_a_gpu_expands_relative_positions_once(monkeypatch: pytest.MonkeyPatch) -> None:
    library = sam(10)
    prepared = copy.deepcopy(library)
    prepare_encoder(prepared, prepared, torch.float32, torch.device("cuda"))  # moves nothing
    with torch.inference_mode():
        expected = library(pixels(library)).last_hidden_state
        monkeypatch.delattr(SamVisionAttention, "get_rel_pos")
        assert torch.equal(prepared(pixels(library)).last_hidden_state, expected)


def test_another_size_has_its_own_positions() -> None:
    theirs, ours = hiera(), hiera()
    optimize_sam(ours, torch.float32)
    with torch.inference_mode():
        for edge in (128, 64, 128):
            asked = torch.randn(1, 3, edge, edge, generator=torch.Generator().manual_seed(2))
            for one, other in zip(levels(ours, asked), levels(theirs, asked), strict=True):
                assert torch.allclose(one, other, atol=1e-4)


@torch.inference_mode()
def test_masks_of_the_decoder() -> None:
    torch.manual_seed(0)
    theirs = widened(Sam2MaskDecoder(Sam2MaskDecoderConfig(hidden_size=64, mlp_dim=128, num_attention_heads=4)))
    ours, low = copy.deepcopy(theirs), copy.deepcopy(theirs)
    optimize_decoder(ours, torch.float32)
    optimize_decoder(low, torch.bfloat16)
    asked = {
        "image_embeddings": torch.randn(1, 64, 8, 8),
        "image_positional_embeddings": torch.randn(1, 64, 8, 8),
        "sparse_prompt_embeddings": torch.randn(1, 5, 2, 64),
        "dense_prompt_embeddings": torch.randn(1, 64, 8, 8),
        "multimask_output": True,
        "high_resolution_features": [torch.randn(1, 8, 32, 32), torch.randn(1, 16, 16, 16)],
    }
    exact = theirs(**asked)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = theirs(**asked)[0]
    assert torch.allclose(ours(**asked)[0], exact, atol=1e-4)
    assert 0 < (low(**asked)[0] - exact).norm() < (rounded - exact).norm()
