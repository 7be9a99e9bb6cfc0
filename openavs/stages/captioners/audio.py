"""A window's samples as a model wants them: its rate, a bounded length, and the same answer every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import soxr

from openavs.structures.types import Waveform

Samples = npt.NDArray[np.float32]  # [N]


def crop_or_pad(audio: Waveform, rate: int, longest: int | None = None, shortest: int = 0) -> Samples:
    """The samples at `rate` Hz; of more than `longest` the centre is kept, fewer than `shortest` get silence behind.

    Audio without samples stays empty.
    """
    samples = audio.samples
    if not len(samples):
        return samples
    if audio.rate != rate:
        samples = soxr.resample(samples, audio.rate, rate)
    surplus = len(samples) - longest if longest is not None else 0
    if longest is not None and surplus > 0:  # the centre, always: extractors cut the end off or draw a place at random
        samples = samples[surplus // 2 : surplus // 2 + longest]
    if len(samples) < shortest:
        samples = np.pad(samples, (0, shortest - len(samples)))
    return np.asarray(samples, dtype=np.float32)


def audio_batches(sounds: Sequence[Samples], size: int) -> Iterator[list[int]]:
    """Positions of the sounds that are not empty, at most `size` at a time."""
    audible = [i for i, sound in enumerate(sounds) if len(sound)]
    for start in range(0, len(audible), size):
        yield audible[start : start + size]
