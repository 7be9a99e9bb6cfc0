"""The sounds of the synthetic world: seeded, audible in every window, and distinct (here: by spectrum)."""

from __future__ import annotations

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.structures.types import Waveform
from openavs.synthetic import audio as sounds
from openavs.synthetic.audio import RATE, background, mix, sound_of
from openavs.synthetic.categories import KINDS

NAMES = [kind.name for kind in KINDS]


def dbfs(samples: np.ndarray) -> float:
    return Waveform(samples, RATE).dbfs


@pytest.mark.parametrize("kind", NAMES)
def test_a_sound_is_bounded_and_the_same_for_the_same_seed(kind: str) -> None:
    first, again, other = (sound_of(kind, 2.5, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert first.dtype == np.float32 and first.shape == (40000,)
    assert np.isfinite(first).all() and np.abs(first).max() < 1
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("kind", NAMES)
def test_every_second_of_a_sound_is_audible(kind: str) -> None:
    for seed in range(5):
        sound = sound_of(kind, 5.0, np.random.default_rng(seed))
        for start in range(0, 4 * RATE, RATE // 4):
            assert dbfs(sound[start : start + RATE]) > -48, f"{kind} falls silent at {start / RATE} s of seed {seed}"


@pytest.mark.parametrize("kind", NAMES)
def test_the_level_of_the_active_parts_is_in_the_range(kind: str) -> None:
    for seed in range(5):
        sound = sound_of(kind, 3.0, np.random.default_rng(seed))
        level = 20 * np.log10(sounds.active_level(sound))
        assert sounds.LOUDNESS[0] - 1 < level < sounds.LOUDNESS[1] + 1


def test_kinds_differ_more_than_the_seeds_of_one_kind() -> None:
    """The nearest of the mean spectra of other seeds is that of the right kind, far beyond the chance of 1 in 20."""

    def spectrum(kind: str, seed: int) -> np.ndarray:
        power = np.abs(np.fft.rfft(sound_of(kind, 4.0, np.random.default_rng(seed)))) ** 2
        bands = np.add.reduceat(power, np.geomspace(80, len(power) - 1, 40).astype(int))
        return np.log10(bands / bands.sum() + 1e-6)

    centers = np.stack([np.mean([spectrum(kind, seed) for seed in range(8)], axis=0) for kind in NAMES])
    right = [
        np.argmin(np.linalg.norm(centers - spectrum(kind, 100 + seed), axis=1)) == index
        for index, kind in enumerate(NAMES)
        for seed in range(3)
    ]
    assert np.mean(right) > 0.8


def test_a_mixture_is_the_sum_and_never_reaches_full_scale() -> None:
    quiet = [0.1 * sound_of(kind, 1.0, np.random.default_rng(3)) for kind in ("dog", "bell")]
    np.testing.assert_allclose(mix(quiet), quiet[0] + quiet[1], atol=1e-6)
    loud = [np.full(100, 0.9, dtype=np.float32)] * 5
    assert mix(loud).max() < 1


def test_the_background_is_below_what_the_pipeline_calls_silence() -> None:
    levels = [dbfs(background(1.0, np.random.default_rng(seed))) for seed in range(20)]
    assert max(levels) < -60
    assert any(np.isneginf(levels)) and not all(np.isneginf(levels))


def test_unknown_kinds_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="'whale'"):
        sound_of("whale", 1.0, np.random.default_rng(0))
    assert len(sound_of("dog", 0.0, np.random.default_rng(0))) == 0
    with pytest.raises(InputError, match="equally long"):
        mix([np.zeros(3, dtype=np.float32), np.zeros(4, dtype=np.float32)])
    with pytest.raises(InputError, match="at least one"):
        mix([])
