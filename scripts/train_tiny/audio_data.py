"""What the tiny CLAP model is trained on: windows of one second of one to three kinds, and their mel features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import ClapFeatureExtractor

from openavs.synthetic.audio import RATE, background, mix, sound_of
from openavs.synthetic.categories import KINDS

TRAIN, VAL, TEST = 0, 1, 2  # first number of every generator's seed: the three never meet

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Heard:
    """A window to classify: the sound `[RATE]` and the indices into `KINDS` of what sounds in it."""

    sound: Samples
    kinds: tuple[int, ...]


def generator(split: int, seed: int, index: int) -> np.random.Generator:
    """The generator of one item of a split."""
    return np.random.default_rng([split, seed, index])


class Pool:
    """Long sounds of every kind, made once; training windows are cut from them and mixed anew each time."""

    def __init__(self, clips: int, seconds: float, split: int, seed: int) -> None:
        # 16-bit samples halve the memory; their rounding lies 30 dB below the background
        self.sounds = np.zeros((len(KINDS), clips, round(seconds * RATE)), dtype=np.int16)
        for index, kind in enumerate(KINDS):
            for clip in range(clips):
                sound = sound_of(kind.name, seconds, generator(split, seed, index * clips + clip))
                self.sounds[index, clip] = np.round(sound * 32767)

    def cut(self, kind: int, rng: np.random.Generator) -> Samples:
        """One second of a kind from a random place."""
        _, clips, length = self.sounds.shape
        start = int(rng.integers(length - RATE + 1))
        cut = self.sounds[kind, int(rng.integers(clips)), start : start + RATE]
        return cut.astype(np.float32) / np.float32(32767)


def window(pool: Pool, rng: np.random.Generator, alone: float = 0.4) -> Heard:
    """A training window: one, two or three kinds, at levels of their own, now and then only part of the second.

    `alone` is the share of windows of one kind; of the others a fifth holds three.
    """
    count = int(rng.choice([1, 2, 3], p=[alone, 0.8 * (1 - alone), 0.2 * (1 - alone)]))
    kinds = tuple(int(kind) for kind in rng.choice(len(KINDS), count, replace=False))
    gain = 10 ** (rng.uniform(-10, 4) / 20)
    parts = [pool.cut(kind, rng) * np.float32(gain * 10 ** (rng.uniform(-3, 3) / 20)) for kind in kinds]
    if rng.uniform() < 0.2:
        position = int(rng.integers(count))
        parts[position] = parts[position] * _partial(rng)
    return Heard(mix([*parts, background(1.0, rng)]), kinds)


def _partial(rng: np.random.Generator) -> Samples:
    """A gate that leaves at least 0.45 s open, at the beginning or at the end of the second."""
    open_for = rng.uniform(0.45, 1.0)
    gate = np.clip((open_for - np.arange(RATE) / RATE) / 0.01, 0.0, 1.0).astype(np.float32)
    return gate if rng.uniform() < 0.5 else gate[::-1]


def scene(split: int, seed: int, index: int, count: int) -> Heard:
    """A window for tests, made as scenes are: whole sounds of `count` kinds, one random second of them."""
    rng = generator(split, seed, index)
    kinds = tuple(int(kind) for kind in rng.choice(len(KINDS), count, replace=False))
    start = int(rng.integers(RATE))
    parts = [sound_of(KINDS[kind].name, 2.0, rng)[start : start + RATE] for kind in kinds]
    return Heard(mix([*parts, background(1.0, rng)]), kinds)


def targets(windows: Sequence[Heard]) -> torch.Tensor:
    """Soft targets `[N, len(KINDS)]`: the kinds that sound share one equally."""
    target = torch.zeros(len(windows), len(KINDS))
    for row, heard in enumerate(windows):
        target[row, list(heard.kinds)] = 1.0 / len(heard.kinds)
    return target


class Mel:
    """The features of `ClapFeatureExtractor` for windows of its full length, for a whole batch at once."""

    def __init__(self, extractor: ClapFeatureExtractor) -> None:
        self.size, self.hop = extractor.fft_window_size, extractor.hop_length
        self.window = torch.hann_window(self.size)
        self.filters = torch.from_numpy(extractor.mel_filters_slaney.T).float()

    def __call__(self, sounds: npt.NDArray[np.float32]) -> torch.Tensor:
        """Log-mel features `[N, 1, time, mel]` in dB of sounds `[N, RATE]`."""
        spectrum = torch.stft(
            torch.from_numpy(sounds), self.size, self.hop, window=self.window, pad_mode="reflect", return_complex=True
        )
        mel = self.filters @ spectrum.abs().square()
        return 10 * mel.clamp(min=1e-10).log10().transpose(1, 2)[:, None]
