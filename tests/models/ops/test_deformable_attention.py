"""Deformable attention against the library's own sampling."""

from __future__ import annotations

import pytest
import torch
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from openavs.models.ops.deformable_attention import build_layout, pad_levels, sample_values

SIZES = ((7, 9), (4, 5), (1, 3))
HEADS, POINTS, CHANNELS = 4, 3, 16
CELLS = sum(height * width for height, width in SIZES)


def library(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`[Q, C]` of the library, from locations `[Q, heads, levels, points, 2]` in parts of the picture."""
    answer: torch.Tensor = MultiScaleDeformableAttention()(
        value.view(1, CELLS, HEADS, -1), torch.tensor(SIZES), list(SIZES), None, locations[None], weights[None], 64
    )
    return answer[0]


def ours(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    layout = build_layout(SIZES, HEADS, POINTS, value.device)
    edges = torch.tensor([[[width, height]] for height, width in SIZES])
    positions = (locations * edges - 0.5).permute(0, 4, 1, 2, 3).flatten(2).contiguous()
    return sample_values(pad_levels(value[None], layout, HEADS)[0], positions, weights.flatten(1), layout, HEADS)


def question(queries: int, reach: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cells, points spread `reach` images wide around the center, and weights."""
    chance = torch.Generator().manual_seed(seed)
    value = torch.randn(CELLS, CHANNELS, generator=chance)
    locations = 0.5 + reach * (torch.rand(queries, HEADS, len(SIZES), POINTS, 2, generator=chance) - 0.5)
    weights = torch.randn(queries, HEADS, len(SIZES) * POINTS, generator=chance).softmax(-1)
    return value, locations, weights.view(queries, HEADS, len(SIZES), POINTS)


@pytest.mark.parametrize("reach", [0.5, 1.0, 1.5, 50.0])
def test_points_inside_on_the_border_and_far_outside(reach: float) -> None:
    with torch.inference_mode():
        asked = question(300, reach)
        assert torch.allclose(ours(*asked), library(*asked), atol=2e-6)


def test_points_exactly_on_cells_corners_and_edges() -> None:
    value, locations, weights = question(41 * 41, 1.0)
    grid = torch.arange(-10, 31) / 20  # whole and half cells of a level of 10, and beyond the borders
    locations[...] = torch.cartesian_prod(grid, grid)[:, None, None, None]
    for _ in range(2):
        assert torch.allclose(ours(value, locations, weights), library(value, locations, weights), atol=2e-6)
        locations = locations * torch.tensor([10 / 9, 10 / 7])  # now of the first level


def test_a_query_does_not_depend_on_the_number_of_queries() -> None:
    value, locations, weights = question(700, 1.2)
    assert torch.equal(ours(value, locations, weights)[650:], ours(value, locations[650:], weights[650:]))


def test_nan_stays_nan() -> None:
    value, locations, weights = question(3, 1.0)
    locations[1, 2, 0, 0, 0], locations[2, 1, 2, 2, 1] = float("nan"), float("inf")
    lost = ours(value, locations, weights).isnan().view(3, HEADS, -1)
    assert not lost[0].any() and lost[1, 2].all() and not lost[1, :2].any()


def test_halves_are_read_and_summed_in_float32() -> None:
    value, locations, weights = question(50, 1.0)
    rounded = value.bfloat16()
    assert torch.equal(ours(rounded, locations, weights), ours(rounded.float(), locations, weights))


def test_a_pyramid_too_large_for_exact_indices_is_refused() -> None:
    with pytest.raises(ValueError, match="too many cells"):
        build_layout(((3000, 3000),), 8, 4, torch.device("cpu"))
