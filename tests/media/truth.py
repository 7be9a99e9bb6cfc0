"""Makes media with a known timeline and measures what is read from them.

Each picture shows its number as a binary counter of black and white blocks; the sound is noise, so that correlation
finds the time of a part of it. Both are generated and encoded through PyAV.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import numpy.typing as npt

from openavs.media.encode import clip_images
from openavs.structures.types import Clip, ImageArray, Waveform

SIDE, BLOCK, BITS = 64, 16, 8
RATE = 44100
SEARCHED = 0.7  # s; the largest offset of the sound that is looked for


def counter(number: int) -> ImageArray:
    """A picture of 4 x 4 blocks: the bits of a number below 256, and their complements."""
    bits = [number >> bit & 1 for bit in range(BITS)]
    blocks = np.array([*bits, *(1 - bit for bit in bits)], np.uint8).reshape(4, 4) * 200 + 28
    return np.repeat(np.kron(blocks, np.ones((BLOCK, BLOCK), np.uint8))[..., None], 3, axis=2)


def read_counter(image: ImageArray) -> int:
    """The number that a picture shows.

    Raises:
        ValueError: the complements do not match, so the picture is damaged or is a blend of two.
    """
    levels = image.mean(axis=2).reshape(4, BLOCK, 4, BLOCK)[:, 4:-4, :, 4:-4].mean(axis=(1, 3)).ravel()
    bits = levels > 128
    if (bits[:BITS] == bits[BITS:]).any():
        raise ValueError(f"no counter: {np.round(levels).tolist()}")
    return int(sum(1 << bit for bit in range(BITS) if bits[bit]))


@cache
def noise(seconds: float, rate: int = RATE) -> npt.NDArray[np.float32]:
    """Noise below about 3 kHz `[N]`, the same in every run."""
    white = np.random.default_rng(3).normal(size=round(seconds * rate))
    smooth = np.convolve(white, np.hanning(rate // 3000 * 2 + 1), mode="same")
    return np.asarray(0.2 * smooth / smooth.std(), np.float32).clip(-1, 1)


@dataclass(frozen=True)
class Rate:
    """The ticks of a clock that have a picture: tick `t` is at `t * tick` seconds."""

    tick: Fraction
    ticks: tuple[int, ...]

    @property
    def times(self) -> list[float]:
        """When each picture begins, in s."""
        return [float(tick * self.tick) for tick in self.ticks]


def constant(rate: Fraction, seconds: float = 4.0) -> Rate:
    """Pictures at every tick."""
    return Rate(1 / rate, tuple(range(int(seconds * rate))))


def variable(seconds: float = 4.0) -> Rate:
    """25 pictures a second of which most are dropped: gaps of 1 to 9 ticks."""
    gaps = np.random.default_rng(5).choice([1, 1, 2, 3, 5, 9], size=200)
    ticks = np.concatenate([[0], np.cumsum(gaps)])
    return Rate(Fraction(1, 25), tuple(int(tick) for tick in ticks if tick < 25 * seconds))


RATES = {"25": constant(Fraction(25)), "29.97": constant(Fraction(30000, 1001)), "variable": variable()}


def write_truth(
    target: Path | IO[bytes],
    rate: Rate,
    *,
    form: str | None = None,
    codec: str = "libx264",
    sound_codec: str | None = "aac",
    pix_fmt: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    picture_start: float = 0.0,
    sound_seconds: float = 4.0,
    sound_rate: int = RATE,
    sound_speed: float = 1.0,
) -> None:
    """Writes numbered pictures at a rate's times, and noise.

    The first picture is at `picture_start` s, the noise begins at 0. Time stamps of the noise are multiplied by
    `sound_speed`.
    """
    name = str(target) if isinstance(target, Path) else target
    with av.open(name, "w", format=form, options=options or {}) as container:
        video = container.add_stream(codec, rate=1 / rate.tick, options=codec_options or {})
        video.height = video.width = SIDE
        video.pix_fmt = pix_fmt
        video.codec_context.time_base = rate.tick
        audio = None
        if sound_codec is not None:
            audio = container.add_stream(sound_codec, rate=sound_rate, layout="mono")
        packets: list[Any] = []
        first = round(picture_start / rate.tick)
        following = {one: other - one for one, other in zip(rate.ticks, rate.ticks[1:], strict=False)}
        for number, tick in enumerate(rate.ticks):
            frame = av.VideoFrame.from_ndarray(counter(number), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = first + tick, rate.tick
            frame.duration = following.get(tick, 1)
            packets += video.encode(frame)
        packets += video.encode(None)
        if audio is not None:
            samples = noise(sound_seconds, sound_rate)
            for start in range(0, len(samples), 1024):
                piece = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="fltp", layout="mono")
                piece.sample_rate, piece.time_base = sound_rate, Fraction(1, sound_rate)
                piece.pts = round(start * sound_speed)
                packets += audio.encode(piece)
            packets += audio.encode(None)
        # in order of time, as recorders write them
        for packet in sorted((p for p in packets if p.dts is not None), key=lambda p: p.dts * p.time_base):
            container.mux(packet)


def picture_offsets(clip: Clip, rate: Rate) -> list[float]:
    """Delay of each picture of a clip's file, in s."""
    times = rate.times
    return [shown.time - (times[read_counter(shown.image)] - times[0]) for shown in clip_images(clip)]


def picture_errors(clip: Clip, rate: Rate, offset: float = 0.0) -> list[int]:
    """Distance in pictures of each sampled frame from the one shown at its time, if all are `offset` s late."""
    begins = np.array(rate.times) - rate.times[0] + offset - 1e-6
    expected = [max(0, int(np.searchsorted(begins, time, side="right")) - 1) for time in clip.times]
    return [abs(read_counter(frame.image) - expected[frame.index]) for frame in clip.frames(None)]


def sound_offset(waveform: Waveform, at: float, *, lead: float = 0.0, seconds: float = 4.0, part: float = 0.5) -> float:
    """Delay of a part of the noise of `seconds` s, in s, by correlation.

    The part begins `at` s into the noise and is expected at `at - lead`.

    Raises:
        ValueError: it is not within `SEARCHED` s of that.
    """
    given, rate = noise(seconds, waveform.rate), waveform.rate
    wanted = given[round(at * rate) : round((at + part) * rate)]
    begin = round((at - lead - SEARCHED) * rate)
    end = begin + len(wanted) + 2 * round(SEARCHED * rate)
    heard = np.zeros(end - begin, np.float32)
    inside = waveform.samples[max(begin, 0) : max(end, 0)]
    heard[max(-begin, 0) : max(-begin, 0) + len(inside)] = inside
    size = 1 << (len(heard) + len(wanted)).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(wanted, size))
    match = np.fft.irfft(spectrum, size)[: len(heard) - len(wanted)]
    best = int(match.argmax())
    level = float(np.linalg.norm(heard[best : best + len(wanted)]) * np.linalg.norm(wanted))
    if level == 0 or match[best] / level < 0.5:
        raise ValueError(f"the noise at {at} s is not found within {SEARCHED} s of its place")
    return best / rate - SEARCHED
