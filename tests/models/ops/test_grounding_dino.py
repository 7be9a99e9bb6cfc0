"""Optimized Grounding DINO against the library's, by module and as a whole."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForZeroShotObjectDetection

from openavs.models.ops import grounding_dino as lean
from openavs.models.ops.grounding_dino import (
    CachedTextEncoder,
    DeformableAttention,
    EncoderLayer,
    FusionLayer,
    TokenAttention,
    optimize_grounding_dino,
)
from openavs.models.ops.linear import Int8Linear, supports_int8
from openavs.stages.detectors.grounding_dino import GroundingDinoDetector
from openavs.structures.types import ImageArray
from tests.stages.detectors.conftest import noise

SIZES = [(12, 20), (6, 10), (3, 5), (2, 3)]
CELLS = sum(height * width for height, width in SIZES)
WIDTH = 32


@pytest.fixture(scope="module", params=["grounding_dino", "mm_grounding_dino"])
def library(request: pytest.FixtureRequest) -> Any:
    model = AutoModelForZeroShotObjectDetection.from_pretrained(request.getfixturevalue(request.param))
    return model.eval().requires_grad_(False)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
@torch.inference_mode()
def test_deformable_attention(library: Any, coordinates: int, padded: bool) -> None:
    theirs = library.model.encoder.layers[0].deformable_layer.self_attn
    mask = torch.ones(2, CELLS, dtype=torch.bool)
    if padded:
        mask[1, 100:] = False
    asked = {
        "hidden_states": random(2, 40, WIDTH),
        "position_embeddings": random(2, 40, WIDTH, seed=1),
        "encoder_hidden_states": random(2, CELLS, WIDTH, seed=2),
        "attention_mask": mask,
        "reference_points": random(2, 40, len(SIZES), coordinates, seed=3).sigmoid(),
        "spatial_shapes": torch.tensor(SIZES),
        "spatial_shapes_list": SIZES,
    }
    ours, _ = DeformableAttention(theirs, torch.float32)(**asked)
    assert torch.allclose(ours, theirs(**asked)[0], atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("together", [50, 4096])
@torch.inference_mode()
def test_encoder_layer(library: Any, padded: bool, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openavs.models.ops.grounding_dino.chunk_size", lambda device: together)
    theirs = library.model.encoder.layers[0].deformable_layer
    mask = torch.ones(2, CELLS, dtype=torch.bool)
    if padded:
        mask[1, 100:] = False
    asked = {
        "hidden_states": random(2, CELLS, WIDTH),
        "attention_mask": mask,
        "position_embeddings": random(2, CELLS, WIDTH, seed=1),
        "reference_points": random(2, CELLS, len(SIZES), 2, seed=3).sigmoid(),
        "spatial_shapes": torch.tensor(SIZES),
        "spatial_shapes_list": SIZES,
    }
    ours, _ = EncoderLayer(theirs, torch.float32)(**asked)
    assert torch.allclose(ours, theirs(**asked)[0], atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
@torch.inference_mode()
def test_fusion_both_ways(library: Any, padded: bool) -> None:
    theirs = copy.deepcopy(library.model.encoder.layers[0].fusion_layer)
    for number, scale in enumerate((theirs.vision_param, theirs.text_param)):
        scale.copy_(random(WIDTH, seed=number))  # they are initialized with 1e-4
    theirs.attn.out_vision_proj.bias.copy_(random(WIDTH))
    no_cell, no_token = torch.zeros(2, CELLS, dtype=torch.bool), torch.zeros(2, 9, dtype=torch.bool)
    if padded:
        no_cell[1, 200:], no_token[0, 7:] = True, True
    asked = (random(2, CELLS, WIDTH), random(2, 9, WIDTH, seed=1), no_cell, no_token)
    (their_vision, _), (their_text, _) = theirs(*asked)
    (vision, _), (text, _) = FusionLayer(theirs)(*asked)
    assert torch.allclose(vision, their_vision, atol=1e-5) and torch.allclose(text, their_text, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@torch.inference_mode()
def test_attention_among_tokens(library: Any, masked: bool) -> None:
    theirs = library.model.decoder.layers[0].encoder_attn_text
    mask = torch.zeros(2, 4, 50, 9)
    if masked:
        mask[1, ..., 6:] = torch.finfo(torch.float32).min
    asked = (random(2, 50, WIDTH), random(2, 9, WIDTH, seed=1), random(2, 9, WIDTH, seed=2), mask)
    assert torch.allclose(TokenAttention(theirs, torch.float32)(*asked)[0], theirs(*asked)[0], atol=1e-5)


def question(model: Any) -> dict[str, torch.Tensor]:
    """Two frames and their caption."""
    ids = torch.tensor([[101, 1037, 1012, 1038, 1039, 1012, 102]]).clamp(max=model.config.text_config.vocab_size - 1)
    ids = ids.expand(2, -1)
    return {
        "pixel_values": random(2, 3, 96, 160),
        "pixel_mask": torch.ones(2, 96, 160, dtype=torch.long),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }


@torch.inference_mode()
def test_the_whole_model(library: Any) -> None:
    lean = copy.deepcopy(library)
    optimize_grounding_dino(lean, torch.float32)
    asked = question(library)
    length = asked["input_ids"].shape[1]
    for _ in range(2):  # the second time the caption is known
        ours, theirs = lean(**asked), library(**asked)
        assert torch.allclose(ours.pred_boxes, theirs.pred_boxes, atol=1e-4)
        assert torch.allclose(ours.logits[..., :length], theirs.logits[..., :length], atol=1e-3)
    assert {p.dtype for p in lean.parameters()} == {torch.float32}


@torch.inference_mode()
def test_sensitive_modules_stay_in_float32(library: Any) -> None:
    lean = copy.deepcopy(library)
    optimize_grounding_dino(lean, torch.bfloat16)
    kept = {name for name, weight in lean.named_parameters() if weight.dtype == torch.float32 and "proj" not in name}
    assert any("decoder.bbox_embed" in name for name in kept) and any("reference_points_head" in name for name in kept)
    asked = question(library)
    ours, exact = lean(**asked), library(**asked)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = library(**asked)
    errors = [
        (model.encoder_last_hidden_state_vision - exact.encoder_last_hidden_state_vision).abs().mean()
        for model in (ours, rounded)
    ]
    assert errors[0] < 1.1 * errors[1]  # no worse than torch's own mixed precision
    assert ours.pred_boxes.dtype == ours.logits.dtype == torch.float32


@torch.inference_mode()
@pytest.mark.skipif(not supports_int8(), reason="this build of torch has no 8-bit product")
def test_eight_bits_are_near_the_library(library: Any) -> None:
    quantized = copy.deepcopy(library)
    optimize_grounding_dino(quantized, torch.qint8)
    eight = {name for name, module in quantized.named_modules() if isinstance(module, Int8Linear)}
    assert any("encoder.layers.0" in name and "feed_forward" in name for name in eight) and not any(
        "bbox_embed" in name for name in eight
    )
    ours, exact = quantized(**question(library)), library(**question(library))
    error = (ours.encoder_last_hidden_state_vision - exact.encoder_last_hidden_state_vision).norm()
    assert 0 < error < 0.05 * exact.encoder_last_hidden_state_vision.norm()


def test_the_number_of_cached_captions_is_limited(grounding_dino: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = GroundingDinoDetector(model=str(grounding_dino), floor=0.0, device="cpu", offline=True)
    frame: ImageArray = noise(120, 200, seed=1)
    before = detector.detect([frame], [["dog"]])
    monkeypatch.setattr(lean, "_MAX_CAPTIONS", 1)
    for phrases in (["red car"], ["dog", "red car"]):
        detector.detect([frame], [phrases])
    [cached] = [module for module in detector.model.modules() if isinstance(module, CachedTextEncoder)]
    assert len(cached._cache) == 1
    assert detector.detect([frame], [["dog"]]) == before


def test_a_frame_of_another_shape_leaves_no_trace(grounding_dino: Path) -> None:
    """Values cached between frames (layouts, captions) do not change later results."""
    detector = GroundingDinoDetector(model=str(grounding_dino), floor=0.0, device="cpu", offline=True)
    first: ImageArray = noise(120, 200, seed=1)
    before = detector.detect([first], [["dog", "red car"]])
    for shape, phrases in (((90, 90), ["dog"]), ((40, 333), ["red car", "dog"])):
        detector.detect([noise(*shape)], [phrases])
    assert detector.detect([first], [["dog", "red car"]]) == before
