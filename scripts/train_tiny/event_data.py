"""Training data of the tiny PE-A-Frame: soundtracks of a few seconds, and what sounds in each 40 ms of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openavs.synthetic.audio import RATE, background, mix, sound_of
from openavs.synthetic.categories import KINDS
from openavs.synthetic.events import BLOCK, active_blocks, active_spans
from scripts.train_tiny.audio_data import generator

FRAME_RATE = 25
FRAME = RATE // FRAME_RATE  # samples

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LabeledTrack:
    """A soundtrack with its targets."""

    samples: Samples  # [seconds * RATE]
    events: Samples  # [len(KINDS), seconds * FRAME_RATE], shares of the frame that events of the kind cover
    sounding: Samples  # the same shape, 1 where the kind sounds, and 0 also in the pauses within an event


class TrackPool:
    """Long sounds of every category, synthesized once; training soundtracks are random mixtures of their parts."""

    def __init__(self, clips: int, seconds: float, split: int, seed: int) -> None:
        # 16-bit samples halve the memory; the rounding noise is 30 dB below the background
        self.sounds = np.zeros((len(KINDS), clips, round(seconds * RATE)), dtype=np.int16)
        for index, kind in enumerate(KINDS):
            for clip in range(clips):
                sound = sound_of(kind.name, seconds, generator(split, seed, index * clips + clip))
                self.sounds[index, clip] = np.round(sound * 32767)

    def cut(self, kind: int, length: int, rng: np.random.Generator) -> Samples:
        """Return a random part of a category, `length` samples, with faded ends."""
        _, clips, longest = self.sounds.shape
        start = int(rng.integers(longest - length + 1))
        cut = self.sounds[kind, int(rng.integers(clips)), start : start + length].astype(np.float32) / 32767
        edge = np.arange(length, dtype=np.float32) / (0.005 * RATE)
        faded: Samples = cut * np.minimum(np.minimum(edge, edge[::-1]), 1.0)
        return faded


def sample_track(
    pool: TrackPool,
    rng: np.random.Generator,
    seconds: int,
    shares: Sequence[float] = (0.2, 0.44, 0.24, 0.12),
    *,
    joint: bool = False,
) -> LabeledTrack:
    """Sample a training soundtrack: sources that start and stop at any time, at random levels.

    `shares` are those of soundtracks with one source, two, three and so on. With `joint` the sources start and stop at
    common times, so that one often ends as another begins, and may sound twice.
    """
    count = int(rng.choice(np.arange(len(shares)) + 1, p=shares))
    kinds = rng.choice(len(KINDS), count, replace=False)
    length = seconds * RATE
    parts = [background(float(seconds), rng)]
    events, sounding = np.zeros((2, len(KINDS), seconds * FRAME_RATE), np.float32)
    gain = 10 ** (rng.uniform(-6, 3) / 20)
    sample_runs = _joint_runs if joint else _single_run
    for kind, runs in zip(kinds, sample_runs(count, length, min(length, pool.sounds.shape[2]), rng), strict=True):
        part = np.zeros(length, dtype=np.float32)
        for start, end in runs:
            part[start:end] = pool.cut(int(kind), end - start, rng)
        part *= np.float32(gain * 10 ** (rng.uniform(-3, 3) / 20))
        parts.append(part)
        events[kind], sounding[kind] = event_frames(part), sounding_frames(part)
    return LabeledTrack(mix(parts), events, sounding)


def _single_run(count: int, length: int, longest: int, rng: np.random.Generator) -> Iterator[list[tuple[int, int]]]:
    """Sample one run of sound of half a second or more for every source: its first sample and the one after it."""
    for _ in range(count):
        run = int(rng.integers(RATE // 2, longest + 1))
        start = int(rng.integers(length - run + 1))
        yield [(start, start + run)]


def _joint_runs(count: int, length: int, longest: int, rng: np.random.Generator) -> Iterator[list[tuple[int, int]]]:
    """Sample runs of sound between two or three common times and the ends of the track, 0.7 s apart or more."""
    times: list[int] = []
    while len(times) < 2 + (rng.random() < 0.5):
        time = int(rng.integers(length))
        if all(abs(time - other) >= 0.7 * RATE for other in (0, length, *times)):
            times.append(time)
    edges = [0, *sorted(times), length]
    for _ in range(count):
        on = rng.random(len(edges) - 1) < 0.6
        on[int(rng.integers(len(on)))] = True
        changes = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]])))
        own = zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True)
        yield [(edges[a], min(edges[b], edges[a] + longest)) for a, b in own]


def sounding_frames(sound: Samples) -> Samples:
    """Return 1 for every 40 ms of a source's own signal with an active block, and 0 for others."""
    return np.asarray(active_blocks(sound).reshape(-1, FRAME // BLOCK).any(axis=1), dtype=np.float32)


def event_frames(sound: Samples) -> Samples:
    """Return the share of each 40 ms of a source's own signal that its events cover (`active_spans`)."""
    blocks = np.zeros(len(sound) // BLOCK, dtype=np.float32)
    for onset, offset in active_spans(sound):
        blocks[round(onset * RATE / BLOCK) : round(offset * RATE / BLOCK)] = 1.0
    shares: Samples = blocks.reshape(-1, FRAME // BLOCK).mean(axis=1)
    return shares
