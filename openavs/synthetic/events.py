"""Exact times of the synthetic world's sounds, from the signal of each source before mixing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openavs.synthetic.audio import RATE

BLOCK = RATE // 50
"""Samples per block: 20 ms, the resolution of the times."""

RANGE_DB = 30.0  # a block is part of an event if its power is within this of the loudest block's
GAP = 0.65  # s; shorter pauses are part of an event, such as those between barks


@dataclass(frozen=True)
class SoundEvent:
    """One source that sounds from `onset` to `offset`, in seconds from the start of the clip.

    Attributes:
        kind: category of the source.
        instance: number of the source, as in the instance map (also of sources outside the frame).
        onset: start in seconds.
        offset: end in seconds.
    """

    kind: str
    instance: int
    onset: float
    offset: float


def active_spans(signal: npt.NDArray[np.floating]) -> list[tuple[float, float]]:
    """Return the (onset, offset) in seconds of every event of a source's own signal `[N]` at `RATE`; none for silence.

    An event is a run of 20 ms blocks within 30 dB of the loudest block; pauses shorter than 0.65 s do not end it.
    """
    active = np.flatnonzero(active_blocks(signal))
    if not len(active):
        return []
    pauses = np.flatnonzero((np.diff(active) - 1) * BLOCK >= GAP * RATE)
    starts, ends = active[[0, *(pauses + 1)]], active[[*pauses, -1]] + 1
    return [(s * BLOCK / RATE, e * BLOCK / RATE) for s, e in zip(starts.tolist(), ends.tolist(), strict=True)]


def active_blocks(signal: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Return which 20 ms blocks of a source's own signal `[N]` are within 30 dB of the loudest one; none of silence."""
    power = np.mean(np.pad(signal, (0, -len(signal) % BLOCK)).reshape(-1, BLOCK).astype(np.float64) ** 2, axis=1)
    return np.asarray((power > 0) & (power >= power.max(initial=0.0) * 10 ** (-RANGE_DB / 10)))
