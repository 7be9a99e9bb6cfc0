"""Training data of the tiny CLAP and VGGish: windows of one second with one to three sources, and log-mel features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import ClapFeatureExtractor

from openavs.synthetic.audio import RATE, background, mix, sound_of
from openavs.synthetic.categories import KINDS

TRAIN, VAL, TEST = 0, 1, 2  # first number of a generator's seed: the splits are disjoint

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LabeledWindow:
    """A window of one second with its sources."""

    samples: Samples  # [RATE]
    kinds: tuple[int, ...]  # indices into `KINDS`


def generator(split: int, seed: int, index: int) -> np.random.Generator:
    """Return the random generator of one item of a split."""
    return np.random.default_rng([split, seed, index])


class SoundPool:
    """Long sounds of every category, synthesized once; training windows are random mixtures of their parts."""

    def __init__(self, clips: int, seconds: float, split: int, seed: int) -> None:
        # 16-bit samples halve the memory; the rounding noise is 30 dB below the background
        self.sounds = np.zeros((len(KINDS), clips, round(seconds * RATE)), dtype=np.int16)
        for index, kind in enumerate(KINDS):
            for clip in range(clips):
                sound = sound_of(kind.name, seconds, generator(split, seed, index * clips + clip))
                self.sounds[index, clip] = np.round(sound * 32767)

    def cut(self, kind: int, rng: np.random.Generator) -> Samples:
        """Return a random second of a category."""
        _, clips, length = self.sounds.shape
        start = int(rng.integers(length - RATE + 1))
        cut = self.sounds[kind, int(rng.integers(clips)), start : start + RATE]
        return cut.astype(np.float32) / np.float32(32767)


def sample_window(pool: SoundPool, rng: np.random.Generator, alone: float = 0.4) -> LabeledWindow:
    """Sample a training window: one to three sources of random levels, sometimes for a part of the second only.

    `alone` is the share of windows with one source; a fifth of the others has three.
    """
    count = int(rng.choice([1, 2, 3], p=[alone, 0.8 * (1 - alone), 0.2 * (1 - alone)]))
    kinds = tuple(int(kind) for kind in rng.choice(len(KINDS), count, replace=False))
    gain = 10 ** (rng.uniform(-10, 4) / 20)
    parts = [pool.cut(kind, rng) * np.float32(gain * 10 ** (rng.uniform(-3, 3) / 20)) for kind in kinds]
    if rng.uniform() < 0.2:
        position = int(rng.integers(count))
        parts[position] = parts[position] * _partial(rng)
    return LabeledWindow(mix([*parts, background(1.0, rng)]), kinds)


def _partial(rng: np.random.Generator) -> Samples:
    """Return a gate that is open for at least 0.45 s at the beginning or the end of the second."""
    open_for = rng.uniform(0.45, 1.0)
    gate = np.clip((open_for - np.arange(RATE) / RATE) / 0.01, 0.0, 1.0).astype(np.float32)
    return gate if rng.uniform() < 0.5 else gate[::-1]


def evaluation_window(split: int, seed: int, index: int, count: int) -> LabeledWindow:
    """Return an evaluation window, synthesized like scenes: a random second of whole sounds of `count` sources."""
    rng = generator(split, seed, index)
    kinds = tuple(int(kind) for kind in rng.choice(len(KINDS), count, replace=False))
    start = int(rng.integers(RATE))
    parts = [sound_of(KINDS[kind].name, 2.0, rng)[start : start + RATE] for kind in kinds]
    return LabeledWindow(mix([*parts, background(1.0, rng)]), kinds)


def targets(windows: Sequence[LabeledWindow]) -> torch.Tensor:
    """Return soft targets `[N, len(KINDS)]`: equal shares of 1 for the sources of a window."""
    target = torch.zeros(len(windows), len(KINDS))
    for row, window in enumerate(windows):
        target[row, list(window.kinds)] = 1.0 / len(window.kinds)
    return target


class BatchedLogMel:
    """The features of `ClapFeatureExtractor` for batches of windows of its full length."""

    def __init__(self, extractor: ClapFeatureExtractor) -> None:
        self.size, self.hop = extractor.fft_window_size, extractor.hop_length
        self.window = torch.hann_window(self.size)
        self.filters = torch.from_numpy(extractor.mel_filters_slaney.T).float()

    def __call__(self, sounds: npt.NDArray[np.float32]) -> torch.Tensor:
        """Return log-mel features `[N, 1, time, mel]` in dB of sounds `[N, RATE]`."""
        spectrum = torch.stft(
            torch.from_numpy(sounds), self.size, self.hop, window=self.window, pad_mode="reflect", return_complex=True
        )
        mel = self.filters @ spectrum.abs().square()
        return 10 * mel.clamp(min=1e-10).log10().transpose(1, 2)[:, None]
