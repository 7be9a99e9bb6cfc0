"""Image sizes and resizing: equal to the image processors', and letterboxing where those fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from transformers.image_transforms import get_size_with_aspect_ratio

from openavs.stages.detectors.processing import choose_resize_policy, edge_size, resize
from tests.stages.detectors.conftest import noise

BILINEAR = Image.Resampling.BILINEAR


@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([(800, 1333), (96, 160), (224, 224)]))
def test_sizes_are_the_librarys(height: int, width: int, edges: tuple[int, int]) -> None:
    assert edge_size((height, width), *edges) == get_size_with_aspect_ratio((height, width), *edges)


def enough_cells(size: tuple[int, int]) -> bool:
    """As Grounding DINO of the released size: strides 8, 16, 32 and a fourth level, 900 queries."""
    cells = [(size[0] // stride) * (size[1] // stride) for stride in (8, 16, 32)]
    return min(cells) > 0 and sum(cells) >= 900


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_every_frame_fits(height: int, width: int) -> None:
    fit = choose_resize_policy((height, width), 800, 1333, enough_cells)
    assert fit is not None and enough_cells(fit.canvas)
    assert all(0 < c <= k for c, k in zip(fit.content, fit.canvas, strict=True))
    # the canvas covers the frame, and no side of the frame is shrunk away to less than it shows
    assert fit.extent[0] >= height - 1e-6 and fit.extent[1] >= width - 1e-6


def test_ordinary_frames_are_not_letterboxed() -> None:
    for size in [(720, 1280), (1920, 1080), (224, 224), (1, 1), (4320, 7680), (100, 1000)]:
        fit = choose_resize_policy(size, 800, 1333, enough_cells)
        assert fit is not None and fit.content == fit.canvas and fit.extent == size


def test_thin_frames_are_letterboxed_along_their_thin_side() -> None:
    wide, tall = (choose_resize_policy(size, 800, 1333, enough_cells) for size in ((60, 4000), (4000, 8)))
    assert wide is not None and wide.content == (20, 1333) and wide.canvas == (83, 1333)
    assert tall is not None and tall.content == (1333, 3) and tall.canvas == (1333, 83)
    assert wide.extent[1] == 4000 and tall.extent[0] == 4000


def test_a_model_that_accepts_nothing() -> None:
    assert choose_resize_policy((100, 100), 32, 32, lambda size: False) is None


@pytest.mark.parametrize("size", [(37, 90), (240, 400), (1, 3)])
@pytest.mark.parametrize("filter_", [BILINEAR, Image.Resampling.BICUBIC])
def test_resizing_is_pillows(size: tuple[int, int], filter_: Image.Resampling) -> None:
    image = noise(120, 200)
    ours = resize(image, size, filter_, torch.device("cpu"))
    assert np.array_equal(ours.numpy(), np.array(Image.fromarray(image).resize(size[::-1], filter_)))


def test_a_frame_of_the_right_size_is_not_resized() -> None:
    image = noise(24, 32)
    assert np.array_equal(resize(image, (24, 32), BILINEAR, torch.device("cpu")).numpy(), image)
