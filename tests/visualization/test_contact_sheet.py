"""Contact sheets: all frames, in order, each below its title, and within the limit of pixels."""

from __future__ import annotations

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.visualization.contact_sheet import contact_sheet

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]


def plain(color: tuple[int, int, int], height: int = 90, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_frames_stand_in_reading_order(count: int) -> None:
    sheet = contact_sheet([plain(c) for c in COLORS[:count]], ["frame"] * count, max_pixels=200_000)

    places = [np.argwhere((sheet == color).all(-1)) for color in COLORS[:count]]
    sizes = [len(place) for place in places]
    assert min(sizes) == max(sizes) > 160 * 90 * 0.8
    corners = [tuple(place[0]) for place in places]
    assert corners == sorted(corners) and sheet.shape[0] * sheet.shape[1] <= 200_000


def test_titles_are_drawn_and_differ() -> None:
    one, other = (contact_sheet([plain((9, 9, 9))], [title], max_pixels=60_000) for title in ("frame 0", "frame 3"))
    assert one.shape == other.shape and (one != other).any()
    assert (contact_sheet([plain((9, 9, 9))], ["\x1b[2J\n" * 50 + "x" * 500], max_pixels=60_000).shape) == one.shape


@pytest.mark.parametrize("size", [(1, 1), (2160, 3840), (20, 2000), (2000, 20)])
def test_any_size_fits(size: tuple[int, int]) -> None:
    images = [plain((255, 0, 0), *size), plain((0, 255, 0))]
    sheet = contact_sheet(images, ["a", "b"], max_pixels=400_000)
    assert sheet.shape[0] * sheet.shape[1] <= 400_000 and sheet.dtype == np.uint8


def test_what_cannot_be_laid_out_is_an_error() -> None:
    with pytest.raises(InputError, match="a title for each"):
        contact_sheet([plain((0, 0, 0))], [], max_pixels=1000)
    with pytest.raises(InputError, match="does not fit into 1000 pixels"):
        contact_sheet([plain((0, 0, 0))] * 40, ["x"] * 40, max_pixels=1000)
