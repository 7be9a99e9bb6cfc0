"""Motion of the synthetic world's things in time with a sound.

A thing moves after a signal: its own sound while it sounds, otherwise a sound of its kind that is not in the mixture.
Each kind moves in its manner: a beat at every onset, a mouth that stretches with the loudness, or a shake.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter1d, maximum_filter1d

from openavs.synthetic.audio import RATE
from openavs.synthetic.shapes import Points, Rng

Series = npt.NDArray[np.float64]
Manner = Literal["beat", "mouth", "shake"]

STEPS = 100
"""Values of an envelope per second."""

MANNERS: dict[str, Manner] = {
    **dict.fromkeys(("bell", "clock", "drum", "guitar", "harp", "horse", "piano"), "beat"),
    **dict.fromkeys(("bird", "cat", "dog", "flute", "trumpet", "violin", "wolf"), "mouth"),
    **dict.fromkeys(("bus", "car", "helicopter", "mower", "saw", "train"), "shake"),
}

STEADY = ("bus", "car", "harp", "helicopter", "mower", "wolf")
"""Kinds whose sound has hardly any onsets or pauses, so that its motion does not differ from that of a twin."""

_DECAY = 0.06  # s, time constant of a beat: 8 % is left after 0.15 s
_RISE = 0.02  # s, from the onset to the peak of a beat
_SMOOTH = 0.04  # s, width of the smoothed loudness
_RISEN = 0.1  # log10 of the rise of the envelope within 30 ms that is an onset
_IDLE = 0.25  # share of a shake that does not follow the loudness


def envelope(signal: npt.NDArray[np.floating]) -> Series:
    """Return the root mean square of a signal `[N]` in windows of 20 ms around 100 times a second.

    Value i is at i / 100 s.
    """
    hop = RATE // STEPS
    padded = np.pad(signal.astype(np.float64) ** 2, (hop, hop + -len(signal) % hop))
    blocks = padded.reshape(-1, hop).mean(axis=1)
    return np.asarray(np.sqrt((blocks[:-1] + blocks[1:]) / 2))


def onsets(loudness: Series) -> list[tuple[float, float]]:
    """Return (time in s, strength in [0, 1]) of every sudden rise of an envelope; see `envelope`."""
    top = loudness.max(initial=0.0)
    if top <= 0:
        return []
    level = np.log10(loudness / top + 0.03)
    rise = level - np.concatenate([np.full(3, np.log10(0.03)), level])[: len(level)]
    peaks = np.flatnonzero((rise >= _RISEN) & (rise == maximum_filter1d(rise, 9)))
    kept = [int(p) for i, p in enumerate(peaks) if not i or p - peaks[i - 1] > 3]
    return [(max(p - 1, 0) / STEPS, min(1.0, float(rise[p]) / 0.3)) for p in kept]


@dataclass(frozen=True)
class Pose:
    """A deviation from the place of rest.

    Attributes:
        shift: x and y, in half extents of the thing.
        turn: radians.
        grow: growth of width and height; the bottom stays.
        lift: growth of the upper half alone.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0
    grow: tuple[float, float] = (0.0, 0.0)
    lift: float = 0.0

    def warp(self, points: Points) -> Points:
        """Stretch the points `[N, 2]` of a drawing in [-1, 1]^2, y down."""
        x, y = points[:, 0] * (1 + self.grow[0]), points[:, 1]
        y = np.where(y < 0, y * (1 + self.lift), y) if self.lift else y
        return np.stack([x, y - (1 - y) * self.grow[1]], axis=1)


@dataclass(frozen=True, eq=False)
class SoundMotion:
    """The motion of one thing.

    Attributes:
        manner: beat, mouth or shake.
        drive: strength in [0, about 1] at i / 100 s, `[N]`.
        jitter: direction of a shake at i / 100 s, `[2, N]`.
        amount: largest displacement as a share of the thing's size.
        weights: shares of shift, turn and squash in a beat.
        angle: direction of a beat's shift, in radians.
        whole: whether a mouth is the whole thing or its upper half.
    """

    manner: Manner
    drive: Series
    jitter: Series
    amount: float
    weights: tuple[float, float, float]
    angle: float
    whole: bool

    def pose(self, time: float) -> Pose:
        """Return the pose at a time in seconds."""
        drive = self.amount * _at(self.drive, time)
        if self.manner == "mouth":
            return Pose(grow=(-0.3 * drive, drive)) if self.whole else Pose(lift=2 * drive)
        if self.manner == "shake":
            return Pose(shift=(2 * drive * _at(self.jitter[0], time), 2 * drive * _at(self.jitter[1], time)))
        shift, turn, squash = (2 * drive * weight for weight in self.weights)
        return Pose((shift * np.cos(self.angle), shift * np.sin(self.angle)), turn, (squash / 4, -squash / 2))


def _at(series: Series, time: float) -> float:
    place = min(max(time * STEPS, 0.0), len(series) - 1.0)
    low = int(place)
    high = min(low + 1, len(series) - 1)
    return float(series[low] + (place - low) * (series[high] - series[low]))


def move_with(kind: str, own: npt.NDArray[np.floating], other: npt.NDArray[np.floating], rng: Rng) -> SoundMotion:
    """Return the motion of a thing.

    Args:
        kind: its category, which decides the manner.
        own: its own sound `[N]` at `RATE`; zeros where it does not sound.
        other: the sound `[N]` that moves it while its own is silent, zeros elsewhere.
        rng: draws amount and direction.
    """
    manner = MANNERS[kind]
    drive = np.maximum(_drive(manner, envelope(own)), _drive(manner, envelope(other)))
    jitter = gaussian_filter1d(rng.standard_normal((2, len(drive))), 2.0, axis=1)
    return _sampled(manner, drive, np.tanh(jitter / jitter.std()), rng)


def deformed(kind: str, rng: Rng) -> SoundMotion:
    """Return a motion that stands still in one of its poses, for single images."""
    return _sampled(MANNERS[kind], rng.uniform(0.0, 1.0, 1), rng.uniform(-1.0, 1.0, (2, 1)), rng)


def _sampled(manner: Manner, drive: Series, jitter: Series, rng: Rng) -> SoundMotion:
    main = int(rng.integers(3))
    weights = (1.0 if main == 0 else 0.3, 1.0 if main == 1 else 0.3, 1.0 if main == 2 else 0.3)
    amount, angle, whole = float(rng.uniform(0.06, 0.15)), float(rng.uniform(0, 2 * np.pi)), bool(rng.random() < 0.5)
    return SoundMotion(manner, drive, jitter, amount, weights, angle, whole)


def _drive(manner: Manner, loudness: Series) -> Series:
    if not loudness.any():
        return np.zeros_like(loudness)
    if manner == "beat":
        return _beats(loudness)
    smooth = gaussian_filter1d(loudness, _SMOOTH / 2 * STEPS)
    sounding = smooth[loudness > 0]
    low, high = np.quantile(sounding, (0.1, 0.95))
    if manner == "mouth":
        return np.asarray(np.clip(smooth / high, 0.0, 1.2))
    load = np.clip((smooth - low) / max(high - low, 0.3 * high), 0.0, 1.0)
    return np.asarray(np.where(loudness > 0, _IDLE + (1 - _IDLE) * load, 0.0))


def _beats(loudness: Series) -> Series:
    """Return impulses at the onsets that rise within 20 ms and decay; where two overlap, the larger one."""
    time = np.arange(len(loudness)) / STEPS
    drive = np.zeros(len(loudness))
    for start, strength in onsets(loudness):
        since = time - start
        impulse = np.where(since < _RISE, since / _RISE, np.exp(-(since - _RISE) / _DECAY))
        drive = np.maximum(drive, strength * np.clip(impulse, 0.0, 1.0))
    return drive


MARGIN = 0.1  # of the frame's short side, around a backdrop with texture


@dataclass(frozen=True, eq=False)
class Camera:
    """A hand-held camera: the whole picture is shifted and turned, smoothly and at random.

    `waves` `[3, K, 3]` holds amplitude, frequency in Hz and phase of the sines of x, y (in units of the short side)
    and turn (radians).
    """

    waves: npt.NDArray[np.float64]

    def pose(self, time: float) -> tuple[float, float, float]:
        """Return x, y and turn at a time in seconds."""
        amplitude, frequency, phase = np.moveaxis(self.waves, 2, 0)
        x, y, turn = (amplitude * np.sin(2 * np.pi * frequency * time + phase)).sum(axis=1)
        return float(x), float(y), float(turn)


def shaking_camera(rng: Rng) -> Camera:
    """Return a camera that shakes by a few pixels of 224 and about a degree, up to 3 times a second."""
    waves = np.empty((3, 4, 3))
    waves[:, :, 1] = rng.uniform(0.3, 3.0, (3, 4))
    waves[:, :, 0] = rng.uniform(0.5, 1.0, (3, 4)) / np.sqrt(waves[:, :, 1])
    reach = np.array([0.03, 0.03, 0.03]) * rng.uniform(0.6, 1.2, 3)
    waves[:, :, 0] *= (reach / waves[:, :, 0].sum(axis=1))[:, None]
    waves[:, :, 2] = rng.uniform(0, 2 * np.pi, (3, 4))
    return Camera(waves)


@dataclass(frozen=True)
class View:
    """The camera's view, drawn at twice the frame's size.

    Attributes:
        size: (height, width) of the frame in pixels.
        pose: x and y of the picture's shift in units of the short side, and the rotation around the center in radians.
    """

    size: tuple[int, int]
    pose: tuple[float, float, float]

    def project(self, points: Points) -> Points:
        """Return points `[N, 2]` of the scene, in pixels at twice the size, in the view."""
        rotation, middle, shift = self._parts()
        return (points - middle) @ rotation + middle + shift

    def background(self, backdrop: Image.Image) -> Image.Image:
        """Return the part of a backdrop (see `textured`) in the view, at twice the size."""
        height, width = self.size
        rotation, middle, shift = (part / 2 for part in self._parts())  # at once the size, which is four times as fast
        back = 2 * rotation  # the inverse of a rotation of row vectors, applied to columns
        margin = (np.array(backdrop.size) - (width, height)) / 2
        origin = middle + margin - back @ (middle + shift)
        matrix = (*back[0], origin[0], *back[1], origin[1])
        view = backdrop.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        return view.resize((2 * width, 2 * height), Image.Resampling.NEAREST)

    def _parts(self) -> tuple[Points, Points, Points]:
        height, width = self.size
        x, y, turn = self.pose
        cos, sin = np.cos(turn), np.sin(turn)
        unit = 2.0 * min(self.size)
        return np.array([[cos, sin], [-sin, cos]]), np.array([width, height], float), np.array([x * unit, y * unit])


def textured(backdrop: npt.NDArray[np.uint8], size: tuple[int, int], rng: Rng) -> npt.NDArray[np.uint8]:
    """Return a backdrop at the frame's own scale with a margin, and with small shapes that show how it moves.

    Args:
        backdrop: small image `[h, w, 3]` of soft colors.
        size: (height, width) of the frame.
        rng: draws the shapes.
    """
    margin = round(MARGIN * min(size))
    height, width = (side + 2 * margin for side in size)
    ground = Image.fromarray(backdrop).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(ground)
    for _ in range(int(rng.integers(50, 90))):
        x, y = rng.uniform(0, 1, 2) * (width, height)
        half = rng.uniform(0.008, 0.03, 2) * min(size)
        near = np.array(ground.getpixel((int(x), int(y))), dtype=float)
        tint = tuple(int(v) for v in np.clip(near + rng.uniform(-40, 40) + rng.normal(0, 8, 3), 0, 255))
        if rng.random() < 0.5:
            draw.ellipse([x - half[0], y - half[1], x + half[0], y + half[1]], fill=tint)
        else:
            angle = rng.uniform(0, np.pi)
            reach = np.array([np.cos(angle), np.sin(angle)]) * half.max() * 2
            draw.line([x - reach[0], y - reach[1], x + reach[0], y + reach[1]], fill=tint, width=2)
    return np.asarray(ground)
