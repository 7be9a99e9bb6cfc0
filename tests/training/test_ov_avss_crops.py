"""Crops of masks against `roi_align` written out sample by sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from openavs.training.models.ov_avss.classifier import crop_and_resize, crop_squares, mask_crops, tight_boxes


def slow_align(image: np.ndarray, x: float, y: float, side: float, size: int) -> np.ndarray:
    """roi_align(aligned=False, sampling_ratio=0) of one square of `[C, H, W]`."""
    height, width = image.shape[1:]
    samples = math.ceil(side / size)
    cell = side / size
    out = np.zeros((len(image), size, size))
    for i in range(size):
        for j in range(size):
            for a in range(samples):
                for b in range(samples):
                    row = y + i * cell + (a + 0.5) * cell / samples
                    column = x + j * cell + (b + 0.5) * cell / samples
                    out[:, i, j] += slow_sample(image, row, column, height, width) / samples**2
    return out


def slow_sample(image: np.ndarray, row: float, column: float, height: int, width: int) -> np.ndarray:
    if row < -1 or row > height or column < -1 or column > width:
        return np.zeros(len(image))
    row, column = (min(max(p, 0.0), n - 1.0) for p, n in ((row, height), (column, width)))
    top, left = int(row), int(column)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = row - top, column - left
    upper = image[:, top, left] * (1 - dx) + image[:, top, right] * dx
    lower = image[:, below, left] * (1 - dx) + image[:, below, right] * dx
    return upper * (1 - dy) + lower * dy


@pytest.mark.parametrize("size", [4, 7])
def test_crops_equal_roi_align(size: int) -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 20, 30) * 255
    where = torch.tensor([[3.0, 2.0, 3.0], [0.0, 0.0, 20.0], [22.0, 10.0, 17.0], [12.0, 4.0, 9.0], [-4.0, 1.0, 14.0]])
    got = crop_and_resize(image[None].expand(len(where), -1, -1, -1), where, size)
    for crop, (x, y, side) in zip(got, where.tolist(), strict=True):
        np.testing.assert_allclose(crop.numpy(), slow_align(image.numpy(), x, y, side, size), atol=1e-3)


def test_boxes_are_tight_and_squares_start_at_their_corner() -> None:
    mask = torch.zeros(2, 10, 12, dtype=torch.bool)
    mask[0, 2:5, 3:10] = True
    mask[1, 9, 0] = True
    assert tight_boxes(mask).tolist() == [[3, 2, 10, 5], [0, 9, 1, 10]]
    assert crop_squares(tight_boxes(mask), centered=False).tolist() == [[3, 2, 7], [0, 9, 1]]
    assert crop_squares(tight_boxes(mask), centered=True).tolist() == [[3, 0, 7], [0, 9, 1]]


def test_soft_crop_is_the_frame_times_the_probability() -> None:
    frames = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    masks = torch.full((3, 2, 32, 32), -6.0)
    masks[1, 1, 8:16, 8:16] = 2.0
    masks[2, :, 4:12, 4:12] = 6.0
    found = dict(mask_crops(frames, masks, 8))
    assert list(found) == [1, 2]  # the first is empty
    assert found[1].shape == (1, 3, 8, 8) and found[2].shape == (2, 3, 8, 8)
    inside = found[1][0, :, 1:6, 1:6]
    torch.testing.assert_close(inside, torch.full_like(inside, 200 * torch.tensor(2.0).sigmoid().item()))


def test_hard_crop_keeps_the_pixels_of_the_mask() -> None:
    frames, masks = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8), torch.full((1, 1, 32, 32), -1.0)
    masks[0, 0, 8:16, 8:24] = 0.5  # a mask that is hardly sure
    ((_, crops),) = mask_crops(frames, masks, 16, hard=True)
    assert (crops[0, :, 1:7, 1:15] == 200).all() and not crops[0, :, 9:].any()
