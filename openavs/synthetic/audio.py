"""The sound of the synthetic world: what each kind sounds like, alone, together, and when nothing sounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.synthetic.synthesis import RATE, VOICES

__all__ = ["HUSH", "LOUDNESS", "RATE", "Samples", "active_level", "background", "mix", "soft_clip", "sound_of"]

Samples = npt.NDArray[np.float32]  # [N] in [-1, 1] at RATE

LOUDNESS = (-26.0, -16.0)  # range of the levels of single sounds, dBFS RMS over their active parts
HUSH = -66.0  # level of the faint noise, dBFS; the pipeline calls windows below -60 silent

_BLOCK = RATE // 50  # 20 ms, the grain in which activity is judged
_KNEE = 0.8  # samples below this are never touched by the soft clipping


def sound_of(kind: str, seconds: float, rng: np.random.Generator) -> Samples:
    """Synthesises a kind (its `name`) for `seconds`: float32 `[round(seconds * RATE)]` in [-1, 1].

    Every second of it is audible. Its level is drawn from `LOUDNESS` and all its parameters come from `rng`.
    """
    if kind not in VOICES:
        raise InputError(f"no kind of the synthetic world is called {kind!r}; there are {', '.join(VOICES)}")
    samples = round(seconds * RATE)
    if samples <= 0:
        return np.zeros(0, dtype=np.float32)
    lead = int(rng.integers(RATE // 2))  # so that a sound does not always begin with an event's first sample
    raw = VOICES[kind](samples + lead, rng)[lead:]
    raw = raw * _edges(samples)
    gain = 10 ** (rng.uniform(*LOUDNESS) / 20) / active_level(raw)
    return soft_clip(raw * gain)


def mix(parts: Sequence[Samples]) -> Samples:
    """The sum of sounds of one length, softly clipped below 1."""
    if not parts:
        raise InputError("a mixture needs at least one sound; give background() where nothing sounds")
    if len({len(part) for part in parts}) > 1:
        raise InputError(f"sounds to mix must be equally long, not {[len(part) for part in parts]} samples")
    return soft_clip(np.sum(np.asarray(parts, dtype=np.float64), axis=0))


def background(seconds: float, rng: np.random.Generator) -> Samples:
    """What there is when nothing sounds: noise at `HUSH` dBFS, or, one time in four, digital silence."""
    samples = round(seconds * RATE)
    level = 0.0 if rng.uniform() < 0.25 else 10 ** (HUSH / 20)
    return np.asarray(level * rng.standard_normal(samples), dtype=np.float32)


def active_level(sound: npt.NDArray[np.floating]) -> float:
    """Root mean square over the blocks of 20 ms within 30 dB of the loudest one; never 0."""
    padded = np.pad(sound, (0, -len(sound) % _BLOCK))
    power = np.mean(padded.reshape(-1, _BLOCK).astype(np.float64) ** 2, axis=1)
    return float(np.sqrt(power[power >= 1e-3 * power.max()].mean())) + 1e-12


def soft_clip(sound: npt.NDArray[np.floating]) -> Samples:
    """Bends what exceeds the knee so that no sample reaches 1; leaves the rest as it is."""
    over = np.maximum(np.abs(sound) - _KNEE, 0.0)
    bent = np.sign(sound) * (_KNEE + (1 - _KNEE) * 0.999 * np.tanh(over / (1 - _KNEE)))
    return np.asarray(np.where(over > 0, bent, sound), dtype=np.float32)


def _edges(samples: int) -> npt.NDArray[np.float64]:
    """Ramps of 5 ms at both ends, against clicks."""
    edge = np.arange(samples) / (0.005 * RATE)
    return np.minimum(np.minimum(edge, edge[::-1]), 1.0)
