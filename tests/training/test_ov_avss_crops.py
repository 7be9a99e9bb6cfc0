"""Crops of masks against `roi_align` written out sample by sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from openavs.training.models.ov_avss.classifier import boxes, cut, mask_crops, squares


def slow_align(picture: np.ndarray, x: float, y: float, side: float, size: int) -> np.ndarray:
    """roi_align(aligned=False, sampling_ratio=0) of one square of `[C, H, W]`."""
    height, width = picture.shape[1:]
    samples = math.ceil(side / size)
    cell = side / size
    out = np.zeros((len(picture), size, size))
    for i in range(size):
        for j in range(size):
            for a in range(samples):
                for b in range(samples):
                    row = y + i * cell + (a + 0.5) * cell / samples
                    column = x + j * cell + (b + 0.5) * cell / samples
                    out[:, i, j] += slow_sample(picture, row, column, height, width) / samples**2
    return out


def slow_sample(picture: np.ndarray, row: float, column: float, height: int, width: int) -> np.ndarray:
    if row < -1 or row > height or column < -1 or column > width:
        return np.zeros(len(picture))
    row, column = (min(max(p, 0.0), n - 1.0) for p, n in ((row, height), (column, width)))
    top, left = int(row), int(column)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = row - top, column - left
    upper = picture[:, top, left] * (1 - dx) + picture[:, top, right] * dx
    lower = picture[:, below, left] * (1 - dx) + picture[:, below, right] * dx
    return upper * (1 - dy) + lower * dy


@pytest.mark.parametrize("size", [4, 7])
def test_squares_are_cut_as_roi_align_cuts_them(size: int) -> None:
    torch.manual_seed(0)
    picture = torch.rand(2, 20, 30) * 255
    where = torch.tensor([[3.0, 2.0, 3.0], [0.0, 0.0, 20.0], [22.0, 10.0, 17.0], [12.0, 4.0, 9.0], [-4.0, 1.0, 14.0]])
    got = cut(picture[None].expand(len(where), -1, -1, -1), where, size)
    for crop, (x, y, side) in zip(got, where.tolist(), strict=True):
        np.testing.assert_allclose(crop.numpy(), slow_align(picture.numpy(), x, y, side, size), atol=1e-3)


def test_boxes_are_tight_and_squares_start_at_their_corner() -> None:
    mask = torch.zeros(2, 10, 12, dtype=torch.bool)
    mask[0, 2:5, 3:10] = True
    mask[1, 9, 0] = True
    assert boxes(mask).tolist() == [[3, 2, 10, 5], [0, 9, 1, 10]]
    assert squares(boxes(mask), centred=False).tolist() == [[3, 2, 7], [0, 9, 1]]
    assert squares(boxes(mask), centred=True).tolist() == [[3, 0, 7], [0, 9, 1]]


def test_a_crop_is_the_frame_dimmed_by_the_soft_mask() -> None:
    frames = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    masks = torch.full((3, 2, 32, 32), -6.0)
    masks[1, 1, 8:16, 8:16] = 2.0
    masks[2, :, 4:12, 4:12] = 6.0
    found = dict(mask_crops(frames, masks, 8))
    assert list(found) == [1, 2]  # the first is not visible
    assert found[1].shape == (1, 3, 8, 8) and found[2].shape == (2, 3, 8, 8)
    inside = found[1][0, :, 1:6, 1:6]
    torch.testing.assert_close(inside, torch.full_like(inside, 200 * torch.tensor(2.0).sigmoid().item()))


def test_or_the_frame_within_the_mask_as_it_is() -> None:
    frames, masks = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8), torch.full((1, 1, 32, 32), -1.0)
    masks[0, 0, 8:16, 8:24] = 0.5  # a mask that is hardly sure
    ((_, crops),) = mask_crops(frames, masks, 16, hard=True)
    assert (crops[0, :, 1:7, 1:15] == 200).all() and not crops[0, :, 9:].any()
