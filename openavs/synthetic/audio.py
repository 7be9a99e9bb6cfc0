"""Audio of the synthetic world: one short synthesis per category with random parameters, mixing, and background noise.

Every synthesis takes a number of samples and a generator and returns a float64 array of any level; `sound_of` sets the
level. Repeated events are at most 0.6 s apart, so that each window of one second has some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, sosfilt

from openavs.errors import InputError

RATE = 16000
Array = npt.NDArray[np.float64]
Voice = Callable[[int, np.random.Generator], Array]

_TABLE = 2048  # samples of one period in a wavetable
_PENTATONIC = np.array([0, 2, 4, 7, 9, 12, 14, 16, 19, 21, 24])

# ------------------------------------------------------------------------------------------------ building blocks


def _seconds(samples: int) -> Array:
    return np.arange(samples) / RATE


@lru_cache(maxsize=256)
def _period(amplitudes: tuple[float, ...]) -> Array:
    grid = 2 * np.pi * np.arange(_TABLE) / _TABLE
    return np.asarray(np.sum([a * np.sin(k * grid) for k, a in enumerate(amplitudes, start=1)], axis=0))


def _tone(freq: float | Array, partials: Sequence[float], samples: int) -> Array:
    """A periodic tone: `freq` in Hz (constant or per sample), one amplitude per harmonic; looked up in one period."""
    top = float(np.max(freq))
    table = _period(tuple(a for k, a in enumerate(partials, start=1) if k * top < 0.48 * RATE))  # no aliasing
    phase = np.arange(samples) * (freq / RATE) if isinstance(freq, float) else np.cumsum(freq) / RATE
    return np.asarray(table[(phase * _TABLE).astype(np.int64) % _TABLE], dtype=np.float64)


def _saw(count: int, slope: float = 1.0) -> list[float]:
    """Amplitudes of `count` harmonics that fall as 1 / k ** slope."""
    return [k**-slope for k in range(1, count + 1)]


@lru_cache(maxsize=256)
def _band(low: int, high: int) -> Array:
    return np.asarray(butter(2, [low, high], btype="bandpass", fs=RATE, output="sos"))


def _noise(samples: int, low: float, high: float, rng: np.random.Generator) -> Array:
    """Noise between two frequencies in Hz, about unit power."""
    sound = sosfilt(_band(round(low), round(min(high, 0.48 * RATE))), rng.standard_normal(samples))
    return np.asarray(sound / (np.sqrt(np.mean(sound**2)) + 1e-9))


def _swell(samples: int, attack: float, release: float) -> Array:
    """A held envelope: linear attack and release in seconds."""
    t = _seconds(samples)
    return np.clip(np.minimum(t / attack, (samples / RATE - t) / release), 0.0, 1.0)


def _fade(samples: int, tau: float, attack: float = 0.002) -> Array:
    """A struck envelope: quick attack, exponential decay of time constant `tau` in seconds."""
    t = _seconds(samples)
    return np.minimum(t / attack, 1.0) * np.exp(-t / tau)


def _pluck(freq: float, samples: int, sustain: float, bright: float, rng: np.random.Generator) -> Array:
    """A plucked string (Karplus-Strong), all periods at once.

    The string's loop filter turns one period into the next, which is a product in the period's Fourier domain; so
    period p is the burst's spectrum times the filter to the power p, and no loop over samples is needed.
    """
    period = max(round(RATE / freq), 4)
    count = -(-samples // period)
    spectrum = np.fft.rfft(rng.uniform(-1, 1, period))
    omega = 2 * np.pi * np.arange(len(spectrum)) / period
    spectrum *= np.exp(-omega / (np.pi * bright))  # the softness of a finger
    spectrum[0] = 0
    loss = np.log(np.cos(omega / 2) + 1e-6) - period / RATE / sustain
    return np.fft.irfft(spectrum * np.exp(np.outer(np.arange(count), loss)), n=period, axis=1).reshape(-1)[:samples]


def _onsets(samples: int, low: float, high: float, rng: np.random.Generator) -> Iterator[int]:
    """Starts of events in samples, `low` to `high` seconds apart; the first at the very beginning."""
    position = 0
    while position < samples:
        yield position
        position += round(RATE * rng.uniform(low, high))


def _add(out: Array, start: int, event: Array) -> None:
    """Adds an event to the sound, cut at its end."""
    room = out[start : start + len(event)]
    room += event[: len(room)]


def _n(seconds: float) -> int:
    return max(round(seconds * RATE), 1)


# ---------------------------------------------------------------------------------------------------------- animals


def _dog(samples: int, rng: np.random.Generator) -> Array:
    out, base = np.zeros(samples), rng.uniform(330, 560)
    for start in _onsets(samples, 0.26, 0.5, rng):
        n = _n(rng.uniform(0.13, 0.2))
        fall = base * rng.uniform(0.9, 1.1) * np.linspace(1.15, 0.55, n)
        bark = _tone(fall, [0.5, 1.0, 0.9, 0.5, 0.3, 0.2], n) + 0.6 * _noise(n, 600, 1700, rng)
        _add(out, start, bark * _fade(n, 0.06, 0.01))
    return out


def _cat(samples: int, rng: np.random.Generator) -> Array:
    out, base = np.zeros(samples), rng.uniform(480, 680)
    for start in _onsets(samples, 0.5, 0.6, rng):
        n = _n(rng.uniform(0.42, 0.52))
        x = np.linspace(0, 1, n)
        glide = base * (0.8 + 0.65 * np.sin(np.pi * x**0.7) - 0.15 * x)
        meow = _tone(glide, [0.6, 1.0, 0.7, 0.45, 0.2, 0.1], n) + 0.03 * _noise(n, 2000, 6000, rng)
        _add(out, start, meow * _swell(n, 0.08, 0.2))
    return out


def _bird(samples: int, rng: np.random.Generator) -> Array:
    out, base, turn = np.zeros(samples), rng.uniform(2800, 4600), rng.choice([-1.0, 1.0])
    for start in _onsets(samples, 0.09, 0.26, rng):
        n = _n(rng.uniform(0.05, 0.11))
        x = np.linspace(0, 1, n)
        sweep = base * rng.uniform(0.85, 1.15) * (1 + turn * rng.uniform(0.15, 0.4) * (x - 0.5))
        sweep += rng.uniform(0, 250) * np.sin(2 * np.pi * 35 * x * n / RATE)
        _add(out, start, _tone(sweep, [1.0, 0.1], n) * np.sin(np.pi * x))
    return out


def _horse(samples: int, rng: np.random.Generator) -> Array:
    out, low = np.zeros(samples), rng.uniform(650, 900)
    step = rng.uniform(0.1, 0.14)
    for start in _onsets(samples, 0.34, 0.44, rng):
        for delay, pitch in ((0.0, low), (step, low * 1.45)):
            n = _n(0.07)
            hit = _tone(pitch * rng.uniform(0.97, 1.03), [1.0, 0.3], n) + 0.4 * _noise(n, 400, 2500, rng)
            _add(out, start + _n(delay), hit * _fade(n, 0.014))
    return out


def _wolf(samples: int, rng: np.random.Generator) -> Array:
    out, base = np.zeros(samples), rng.uniform(290, 360)
    for start in _onsets(samples, 2.0, 3.2, rng):
        n = _n(rng.uniform(2.2, 3.3))
        x = np.linspace(0, 1, n)
        glide = base * (1 + 1.1 * np.sin(np.pi * np.minimum(x * 1.25, 0.62 + 0.25 * x)))
        glide *= 1 + 0.01 * np.sin(2 * np.pi * 5 * x * n / RATE)
        _add(out, start, _tone(glide, [1.0, 0.35, 0.12, 0.04], n) * _swell(n, 0.15, 0.2))
    return out


# --------------------------------------------------------------------------------------------------------- machines


def _bus(samples: int, rng: np.random.Generator) -> Array:
    rate, knock = rng.uniform(17, 25), rng.uniform(55, 85)
    t = _seconds(samples)
    beat = np.exp(-6 * ((t * rate + 0.03 * np.sin(2 * np.pi * 1.3 * t)) % 1.0))
    rumble = _tone(knock, [1.0, 0.6, 0.35, 0.2], samples)
    hum, knocks = _noise(samples, 40, 180, rng), _noise(samples, 300, 900, rng)
    return np.asarray(beat * rumble + 0.35 * hum + 0.12 * beat * knocks)


def _car(samples: int, rng: np.random.Generator) -> Array:
    base, length = rng.uniform(85, 120), rng.uniform(0.9, 1.6)
    x = (_seconds(samples) / length + rng.uniform()) % 1.0
    pitch = base * (1 + 1.9 * np.where(x < 0.85, x / 0.85, (1 - x) / 0.15))
    engine = _tone(pitch, _saw(14, 0.8), samples) + 0.5 * _tone(pitch / 2, _saw(10), samples)
    return np.asarray(engine * (0.6 + 0.4 * pitch / pitch.max()) + 0.15 * _noise(samples, 300, 2000, rng))


def _helicopter(samples: int, rng: np.random.Generator) -> Array:
    x = (_seconds(samples) * rng.uniform(10, 16)) % 1.0
    chop = np.exp(-((x - 0.4) ** 2) / 0.03)
    turbine = 0.06 * _tone(rng.uniform(1500, 2100), [1.0], samples)
    return np.asarray(chop * _noise(samples, 60, 550, rng) + turbine)


def _mower(samples: int, rng: np.random.Generator) -> Array:
    t, rate = _seconds(samples), rng.uniform(70, 92)
    pitch = rate * (1 + 0.02 * np.sin(2 * np.pi * rng.uniform(0.5, 1.5) * t))
    motor = _tone(pitch, [1.0] * 22, samples) / 3
    return np.asarray(motor + 0.55 * _noise(samples, 800, 5000, rng))


def _saw_blade(samples: int, rng: np.random.Generator) -> Array:
    t, rate = _seconds(samples), rng.uniform(160, 240)
    load = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(1.6, 3.0) * t + rng.uniform(0, 6))
    buzz = np.tanh(3 * _tone(rate * (1.12 - 0.2 * load), _saw(24, 0.6), samples))
    return np.asarray((0.55 + 0.45 * load) * buzz + 0.25 * load * _noise(samples, 2500, 7000, rng))


def _train(samples: int, rng: np.random.Generator) -> Array:
    out, root = 0.18 * _noise(samples, 80, 700, rng), rng.uniform(255, 320)
    for start in _onsets(samples, 0.42, 0.56, rng):  # wheels over the joints of the rails
        for delay in (0.0, 0.13):
            n = _n(0.1)
            _add(out, start + _n(delay), 1.3 * _noise(n, 150, 1600, rng) * _fade(n, 0.03))
    for start in _onsets(samples, 0.9, 1.5, rng):
        n = _n(rng.uniform(0.6, 0.95))
        chord = sum((_tone(root * ratio, _saw(6), n) for ratio in (1.0, 1.26, 1.5)), np.zeros(n))
        _add(out, start, 0.4 * chord * _swell(n, 0.05, 0.1))
    return out


def _clock(samples: int, rng: np.random.Generator) -> Array:
    out, pitch, beat = np.zeros(samples), rng.uniform(2000, 2900), 1 / rng.uniform(2.0, 4.0)
    for index, start in enumerate(_onsets(samples, beat, beat, rng)):
        n = _n(0.035)
        tick = _tone(pitch * (1.0 if index % 2 else 1.22), [1.0], n) + 0.5 * _noise(n, 3000, 7000, rng)
        _add(out, start, tick * _fade(n, 0.005, 0.0005))
    return out


# ------------------------------------------------------------------------------------------------------ instruments


def _bell(samples: int, rng: np.random.Generator) -> Array:
    out, base = np.zeros(samples), rng.uniform(380, 760)
    n = _n(1.6)
    t = _seconds(n)
    strike = np.zeros(n)
    for ratio, amplitude, tau in ((0.5, 0.4, 1.2), (1, 1, 0.9), (1.19, 0.7, 0.7), (2.0, 0.8, 0.5), (2.74, 0.6, 0.35)):
        strike += amplitude * np.sin(2 * np.pi * base * ratio * t) * np.exp(-t / tau)
    strike += 0.5 * np.sin(2 * np.pi * base * 4.07 * t) * np.exp(-t / 0.2)
    strike *= np.minimum(t / 0.001, 1.0)
    for start in _onsets(samples, 0.45, 0.6, rng):
        _add(out, start, strike * rng.uniform(0.7, 1.0))
    return out


def _drum(samples: int, rng: np.random.Generator) -> Array:
    out, base = np.zeros(samples), rng.uniform(75, 120)
    for start in _onsets(samples, 0.14, 0.34, rng):
        n = _n(0.25)
        skin = np.sin(2 * np.pi * np.cumsum(base * (1 + np.exp(-_seconds(n) / 0.02))) / RATE) * _fade(n, 0.07)
        _add(out, start, rng.uniform(0.6, 1.0) * (skin + 0.35 * _noise(n, 150, 3500, rng) * _fade(n, 0.02)))
    return out


def _melody(
    samples: int, low: float, lengths: tuple[float, float], rng: np.random.Generator
) -> Iterator[tuple[int, int, float]]:
    """Notes of a pentatonic tune over `low` Hz: start and length in samples, frequency in Hz."""
    for start in _onsets(samples, *lengths, rng):
        n = _n(lengths[0] + 0.05)
        yield start, n, low * 2 ** (float(rng.choice(_PENTATONIC[:8])) / 12)


def _vibrato(freq: float, n: int, depth: float, rng: np.random.Generator) -> Array:
    return freq * (1 + depth * np.sin(2 * np.pi * rng.uniform(4.8, 6.2) * _seconds(n)))


def _flute(samples: int, rng: np.random.Generator) -> Array:
    out = 0.02 * _noise(samples, 1500, 6000, rng)
    for start, n, freq in _melody(samples, rng.uniform(560, 720), (0.28, 0.42), rng):
        note = _tone(_vibrato(freq, n, 0.006, rng), [1.0, 0.12, 0.03], n) + 0.09 * _noise(n, 600, 2400, rng)
        _add(out, start, note * _swell(n, 0.05, 0.05))
    return out


def _guitar(samples: int, rng: np.random.Generator) -> Array:
    out, root = np.zeros(samples), rng.uniform(98, 150)
    for start in _onsets(samples, 0.3, 0.55, rng):
        shift = 2 ** (float(rng.choice([0, 5, 7])) / 12)
        for string, ratio in enumerate((1.0, 1.5, 2.0, 2.52, 3.0)):
            note = _pluck(root * shift * ratio, _n(0.6), 0.5, 0.5, rng)
            _add(out, start + _n(0.014 * string), note * _swell(len(note), 0.001, 0.05))
    return out


def _harp(samples: int, rng: np.random.Generator) -> Array:
    out, low, step, up = np.zeros(samples), rng.uniform(300, 420), 0, True
    for start in _onsets(samples, 0.07, 0.11, rng):
        n, freq = _n(0.5), low * 2 ** (_PENTATONIC[step] / 12)
        note = _tone(freq, [1.0, 0.3, 0.12], n) * _fade(n, 0.16) + 0.25 * _tone(4 * freq, [1.0], n) * _fade(n, 0.02)
        _add(out, start, note)
        step += 1 if up else -1
        up = (up and step < len(_PENTATONIC) - 1) or step == 0
    return out


def _piano(samples: int, rng: np.random.Generator) -> Array:
    out, low = np.zeros(samples), rng.uniform(140, 240)
    for start in _onsets(samples, 0.18, 0.4, rng):
        for _ in range(int(rng.integers(1, 3))):
            n, freq = _n(0.7), low * 2 ** (float(rng.choice(_PENTATONIC)) / 12)
            slow = _tone(freq, [1.0, 0.5, 0.25, 0.12], n) * _fade(n, 0.3, 0.004)
            quick = _tone(freq * 1.003, [0.2, 0.4, 0.5, 0.45, 0.35, 0.25, 0.15], n) * _fade(n, 0.09, 0.004)
            hammer = 0.25 * _noise(n, 100, 900, rng) * _fade(n, 0.01)
            _add(out, start, slow + quick + hammer)
    return out


def _trumpet(samples: int, rng: np.random.Generator) -> Array:
    out = np.zeros(samples)
    for start, n, freq in _melody(samples, rng.uniform(300, 400), (0.18, 0.36), rng):
        mellow, brassy = _tone(freq, _saw(4), n), _tone(freq, [0.4, 0.7, 0.9, 1.0, 0.9, 0.8, 0.6, 0.5, 0.4, 0.3], n)
        blow = _swell(n, 0.06, 0.06)
        _add(out, start, (0.5 * mellow + brassy * blow) * _swell(n, 0.02, 0.04))
    return out


def _violin(samples: int, rng: np.random.Generator) -> Array:
    out = np.zeros(samples)
    for start, n, freq in _melody(samples, rng.uniform(330, 460), (0.5, 0.58), rng):
        bow = _tone(_vibrato(freq, n, 0.014, rng), _saw(16, 0.9), n) + 0.08 * _noise(n, 2000, 7000, rng)
        _add(out, start, bow * _swell(n, 0.09, 0.06))
    return out


VOICES: dict[str, Voice] = {
    "bell": _bell,
    "bird": _bird,
    "bus": _bus,
    "car": _car,
    "cat": _cat,
    "clock": _clock,
    "dog": _dog,
    "drum": _drum,
    "flute": _flute,
    "guitar": _guitar,
    "harp": _harp,
    "helicopter": _helicopter,
    "horse": _horse,
    "mower": _mower,
    "piano": _piano,
    "saw": _saw_blade,
    "train": _train,
    "trumpet": _trumpet,
    "violin": _violin,
    "wolf": _wolf,
}


Samples = npt.NDArray[np.float32]  # [N] in [-1, 1] at RATE

LOUDNESS = (-26.0, -16.0)  # range of the levels of single sounds, dBFS RMS over their active parts
NOISE_FLOOR_DBFS = -66.0  # level of the faint noise, dBFS; the pipeline calls windows below -60 silent

_BLOCK = RATE // 50  # 20 ms, the resolution of activity
_KNEE = 0.8  # amplitude below which soft clipping changes nothing


def sound_of(kind: str, seconds: float, rng: np.random.Generator) -> Samples:
    """Synthesize a category (its `name`) for `seconds`: float32 `[round(seconds * RATE)]` in [-1, 1].

    Every second of it is audible. Its level is drawn from `LOUDNESS` and all its parameters come from `rng`.
    """
    if kind not in VOICES:
        raise InputError(f"the synthetic world has no category {kind!r}; there are {', '.join(VOICES)}")
    samples = round(seconds * RATE)
    if samples <= 0:
        return np.zeros(0, dtype=np.float32)
    lead = int(rng.integers(RATE // 2))  # sounds do not always begin with an event's first sample
    raw = VOICES[kind](samples + lead, rng)[lead:]
    raw = raw * _edges(samples)
    gain = 10 ** (rng.uniform(*LOUDNESS) / 20) / active_level(raw)
    return soft_clip(raw * gain)


def mix(parts: Sequence[Samples]) -> Samples:
    """Return the sum of sounds of one length, softly clipped below 1."""
    if not parts:
        raise InputError("a mixture needs at least one sound; use background() for silence")
    if len({len(part) for part in parts}) > 1:
        raise InputError(f"sounds to mix must be equally long, not {[len(part) for part in parts]} samples")
    return soft_clip(np.sum(np.asarray(parts, dtype=np.float64), axis=0))


def background(seconds: float, rng: np.random.Generator) -> Samples:
    """Return background noise at `NOISE_FLOOR_DBFS`, or digital silence with probability 1/4."""
    samples = round(seconds * RATE)
    level = 0.0 if rng.uniform() < 0.25 else 10 ** (NOISE_FLOOR_DBFS / 20)
    return np.asarray(level * rng.standard_normal(samples), dtype=np.float32)


def active_level(sound: npt.NDArray[np.floating]) -> float:
    """Return the root mean square over the 20 ms blocks within 30 dB of the loudest one; never 0."""
    padded = np.pad(sound, (0, -len(sound) % _BLOCK))
    power = np.mean(padded.reshape(-1, _BLOCK).astype(np.float64) ** 2, axis=1)
    return float(np.sqrt(power[power >= 1e-3 * power.max()].mean())) + 1e-12


def soft_clip(sound: npt.NDArray[np.floating]) -> Samples:
    """Compress samples above the knee so that none reaches 1; the others are unchanged."""
    over = np.maximum(np.abs(sound) - _KNEE, 0.0)
    bent = np.sign(sound) * (_KNEE + (1 - _KNEE) * 0.999 * np.tanh(over / (1 - _KNEE)))
    return np.asarray(np.where(over > 0, bent, sound), dtype=np.float32)


def _edges(samples: int) -> npt.NDArray[np.float64]:
    """Fade 5 ms at both ends, against clicks."""
    edge = np.arange(samples) / (0.005 * RATE)
    return np.minimum(np.minimum(edge, edge[::-1]), 1.0)
