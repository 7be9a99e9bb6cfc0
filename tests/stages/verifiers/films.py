"""Small films of things that move in time with a sound, or out of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, shift

from openavs.structures.masks import mask_to_rle
from openavs.structures.types import BoolMask, Box, Clip, Frame, ImageArray, Prompt, Segment, TrackedFrame, Waveform

Array = npt.NDArray[np.float64]

RATE, FPS, SIZE = 16000, 25.0, (72, 96)
CENTERS = ((36, 22), (36, 72), (12, 48))  # row and column of each thing


def beats(seed: int, seconds: float, start: float = 0.0) -> list[float]:
    """Return irregular times of beats, in seconds."""
    rng, times = np.random.default_rng(seed), [start + 0.2]
    while times[-1] < seconds:
        times.append(times[-1] + float(rng.uniform(0.25, 0.6)))
    return times[:-1]


def knocks(times: Sequence[float], seconds: float) -> Waveform:
    """Return a knock at each time, over faint noise."""
    rng = np.random.default_rng(0)
    at = np.arange(round(seconds * RATE)) / RATE
    sound = 1e-4 * rng.standard_normal(len(at))
    for time in times:
        since = at - time
        sound += np.where(since >= 0, 0.3 * np.exp(-np.maximum(since, 0) / 0.05) * np.sin(2 * np.pi * 300 * since), 0)
    return Waveform(sound.clip(-1, 1).astype(np.float32), RATE)


def hum(seconds: float) -> Waveform:
    """Return a steady tone."""
    at = np.arange(round(seconds * RATE)) / RATE
    return Waveform((0.2 * np.sin(2 * np.pi * 220 * at)).astype(np.float32), RATE)


def jumps(times: Sequence[float]) -> Callable[[float], float]:
    """Return the displacement in pixels over time of a thing that jumps at each time."""

    def displacement(time: float) -> float:
        return sum(3.0 * float(np.exp(-(time - at) / 0.08)) for at in times if time >= at)

    return displacement


def shaking(seed: int) -> Callable[[float], tuple[float, float]]:
    """Return rows and columns that a hand-held camera is off, over time."""
    phase, speed = np.random.default_rng(seed).uniform(0, 6.28, (2, 3)), (0.7, 1.6, 2.7)

    def offset(time: float) -> tuple[float, float]:
        row, column = (sum(np.sin(2 * np.pi * f * time + p) for f, p in zip(speed, own, strict=True)) for own in phase)
        return float(row), float(column)

    return offset


@dataclass(frozen=True, eq=False)
class Film:
    """Discs that move up and down in front of a textured wall.

    Attributes:
        moves: displacement of each disc in pixels over time.
        camera: rows and columns that the camera is off over time; None if it stands.
        cut: time at which the wall changes, in seconds; None for no cut.
        rate: pictures per second of the file; frames in between repeat the same array.
        end: time from which the picture is frozen.
    """

    moves: Sequence[Callable[[float], float]]
    seconds: float = 6.0
    camera: Callable[[float], tuple[float, float]] | None = None
    cut: float | None = None
    rate: float = FPS
    end: float = np.inf
    decoded: list[int] = field(default_factory=list)

    def owners(self, time: float) -> npt.NDArray[np.int64]:
        """Return the number of the disc that each pixel belongs to, from 1; 0 for the wall."""
        rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
        off = self.camera(time) if self.camera else (0.0, 0.0)
        owners = np.zeros(SIZE, dtype=np.int64)
        for number, move in enumerate(self.moves, start=1):
            row, column = CENTERS[number - 1]
            far = np.hypot(rows - row - off[0] + move(time), columns - column - off[1])
            owners[far < 9] = number
        return owners

    def picture(self, time: float) -> ImageArray:
        """Return the picture at a time."""
        seed = 1 if self.cut is None or time < self.cut else 2
        off = self.camera(time) if self.camera else (0.0, 0.0)
        gray = shift(_texture(seed), off, order=1, mode="nearest")
        for number, move in enumerate(self.moves, start=1):
            patch = shift(_texture(10 + number) / 3 + 150, (off[0] - move(time), off[1]), order=1, mode="nearest")
            gray = np.where(self.owners(time) == number, patch, gray)
        noise = np.random.default_rng(round(time * 1000)).normal(0, 1.0, SIZE)
        pixels: ImageArray = np.repeat((gray + noise).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
        return pixels

    def dense(self, fps: float, longest_side: int) -> Iterator[Frame]:
        """Decode frames: a `DenseFrameSource`."""
        shown, image = -1.0, np.zeros((*SIZE, 3), dtype=np.uint8)
        for i in range(round(self.seconds * fps)):
            time = (i + 0.5) / fps
            now = (np.floor(min(time, self.end) * self.rate) + 0.5) / self.rate
            if now != shown:
                shown, image = now, self.picture(now)
            self.decoded.append(i)
            yield Frame(i, time, image)

    def clip(self, audio: Waveform | None, fps: float = 2.0) -> Clip:
        """Return the film as a clip of some sampled frames a second."""
        times = tuple((i + 0.5) / fps for i in range(round(self.seconds * fps)))
        return Clip("film", times, fps, SIZE, lambda _: iter(()), audio, dense_frames=self.dense)

    def frames(self, clip: Clip, *, tracks: bool = True, phrase: str = "drum") -> list[TrackedFrame]:
        """Return the sampled frames with the true masks of the discs as segments."""
        tracked = []
        for i, time in enumerate(clip.times):
            owners = self.owners(time)
            segments = [
                Segment(mask_to_rle(owners == number), box_of(owners == number), phrase, 0.9, track=number)
                for number in range(1, len(self.moves) + 1)
            ]
            if not tracks:
                segments = [Segment(s.mask, s.box, s.phrase, s.score) for s in segments]
            tracked.append(TrackedFrame(Frame(i, time, np.zeros((*SIZE, 3), np.uint8)), (phrase,), tuple(segments), ()))
        return tracked


def prompts(clip: Clip, *phrases: str) -> list[tuple[Prompt, ...]]:
    """Return the same prompts for every frame."""
    return [tuple(map(Prompt, phrases))] * len(clip.times)


def box_of(mask: BoolMask) -> Box:
    """Return the box around a mask."""
    rows, columns = np.nonzero(mask)
    return (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))


def _texture(seed: int) -> Array:
    noise = gaussian_filter(np.random.default_rng(seed).normal(0, 1, SIZE), 2)
    return np.asarray(128 + 60 * noise / noise.std())
