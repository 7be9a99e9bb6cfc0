"""The vocabulary refuses what no stage could work with, in one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Waveform

SECOND = np.zeros(16000, dtype=np.float32)


@pytest.mark.parametrize(
    ("samples", "rate", "says"),
    [
        (SECOND.astype(np.float64), 16000, r"^a waveform is float32 \[N\], not float64 \[16000\]$"),
        (SECOND[None], 16000, r"^a waveform is float32 \[N\], not float32 \[1, 16000\]$"),
        (SECOND, 0, "^a sample rate is positive, not 0$"),
        (SECOND, -1, "^a sample rate is positive, not -1$"),
    ],
)
def test_invalid_waveforms_are_refused(samples: Any, rate: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Waveform(samples, rate)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, -1])
def test_nan_and_infinity_are_found_anywhere(bad: float, place: int) -> None:
    samples = np.zeros(3_000_001, dtype=np.float32)
    samples[place] = bad
    with pytest.raises(InputError, match=r"^the sound has NaN or infinite samples; repair or re-encode its track$"):
        Waveform(samples, 16000)


def test_a_waveform_knows_its_length() -> None:
    assert Waveform(SECOND, 16000).duration == 1.0
    assert Waveform(SECOND, 1).duration == 16000.0
    assert Waveform(SECOND[:0], 16000).duration == 0.0


def test_the_level_is_that_of_the_whole_sound() -> None:
    half = Waveform(np.full(1 << 21, 0.5, dtype=np.float32), 16000)
    assert half.dbfs == pytest.approx(20 * np.log10(0.5))
    loud = np.zeros(1 << 21, dtype=np.float32)
    loud[: 1 << 20] = 1.0  # the second block is silent
    assert Waveform(loud, 16000).dbfs == pytest.approx(10 * np.log10(0.5))
    assert Waveform(np.ones(9, dtype=np.float32), 16000).dbfs == 0.0
    assert Waveform(SECOND, 16000).dbfs == Waveform(SECOND[:0], 16000).dbfs == float("-inf")


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (1, 3, list(range(10, 30))),
        (-5, 0.2, [0, 1]),
        (3.8, 9, [38, 39]),
        (0.04, 0.16, [0, 1]),
        (2, 1, []),
        (7, 9, []),
        (-2, -1, []),
    ],
)
def test_a_cut_is_what_lies_between_two_times(start: float, end: float, found: list[int]) -> None:
    cut = Waveform(np.arange(40, dtype=np.float32), 10).cut(start, end)
    assert cut.samples.tolist() == found and cut.rate == 10


def test_a_mask_has_rows_and_columns() -> None:
    with pytest.raises(ValueError, match=r"^a mask is \[H, W\], not \[3, 4, 1\]$"):
        mask_to_rle(np.zeros((3, 4, 1), dtype=np.bool_))
