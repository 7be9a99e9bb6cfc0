"""Optimized layers of the Swin Transformer against the library's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import SwinConfig
from transformers.models.swin import modeling_swin

from openavs.models.ops import swin
from openavs.models.ops.swin import SwinLayer

EDGE, WIDTH, HEADS = 4, 32, 2
SIZES = [(8, 12), (9, 14), (3, 2)]  # whole windows; padded ones; smaller than a window


def library_layer(shift: int) -> Any:
    torch.manual_seed(0)
    layer = modeling_swin.SwinLayer(SwinConfig(window_size=EDGE), WIDTH, (8, 12), HEADS, shift_size=shift).eval()
    layer.attention.relative_position_bias.relative_position_bias_table.data.normal_()
    return layer.requires_grad_(False)


def cells(size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(2, size[0] * size[1], WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("together", [1, 1 << 21])
@pytest.mark.parametrize("shift", [0, EDGE // 2])
@pytest.mark.parametrize("size", SIZES)
def test_float32(size: tuple[int, int], shift: int, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swin, "_CACHED_VALUES", together)
    monkeypatch.setattr(swin, "_THREAD_VALUES", together)
    theirs = library_layer(shift)
    with torch.inference_mode():
        ours, _ = SwinLayer(theirs, torch.float32)(cells(size), size)
        assert torch.allclose(ours, theirs(cells(size), size, always_partition=True)[0], atol=1e-5)


@pytest.mark.parametrize("shift", [0, EDGE // 2])
def test_bfloat16_is_as_near_as_autocast(shift: int) -> None:
    theirs, size = library_layer(shift), SIZES[1]
    with torch.inference_mode():
        exact = theirs(cells(size), size, always_partition=True)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = theirs(cells(size), size, always_partition=True)[0]
        ours, _ = SwinLayer(copy.deepcopy(theirs), torch.bfloat16)(cells(size), size)
    assert (ours - exact).norm() < 1.2 * (rounded - exact).norm()
