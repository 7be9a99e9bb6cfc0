"""The tensor resize equals Pillow's to the byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from openavs.models.ops.image import resize_bilinear, resize_tensor

side = st.integers(1, 200)


def pillow(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


@given(old=st.tuples(side, side), new=st.tuples(side, side), seed=st.integers(0, 99), hard=st.booleans())
@settings(max_examples=80, deadline=None)
def test_any_size_to_any_size(old: tuple[int, int], new: tuple[int, int], seed: int, hard: bool) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (*old, 3), dtype=np.uint8)
    if hard:  # black and white: the sums reach both ends of their range
        image = np.where(image > 127, 255, 0).astype(np.uint8)
    assert np.array_equal(resize_tensor(torch.from_numpy(image), new).numpy(), pillow(image, new))


@pytest.mark.parametrize(
    ("old", "new"), [((720, 1280), (576, 1024)), ((2160, 3840), (576, 1024)), ((1, 1), (1024, 1024))]
)
def test_the_sizes_of_real_frames(old: tuple[int, int], new: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    assert np.array_equal(resize_tensor(torch.from_numpy(image), new).numpy(), pillow(image, new))
    assert np.array_equal(resize_bilinear(image, new, "cpu").numpy(), pillow(image, new))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_bytes_on_a_gpu() -> None:
    image = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    assert np.array_equal(resize_bilinear(image, (576, 1024), "cuda").cpu().numpy(), pillow(image, (576, 1024)))


def test_on_another_device_a_frame_is_resized_there() -> None:
    frame = np.zeros((30, 40, 3), dtype=np.uint8)
    small = resize_bilinear(frame, (12, 10), "meta")
    assert (small.device.type, small.dtype, small.shape) == ("meta", torch.uint8, (12, 10, 3))
