"""Synchrony of motions and a sound: features of the sound, their correlation, and which of several things fits when."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from openavs.structures.types import Event, Waveform

Series = npt.NDArray[np.float64]

_STEPS = 4  # spectra per frame
_WINDOW = 0.04  # s, of a spectrum
_BANDS = 24
_LOW, _HIGH = 60.0, 8000.0  # Hz
_FLOOR = 1e-4  # of a band's power relative to the loudest band: rises below it do not count
_BLOCK = 50  # frames whose spectra are computed together

LAG_PENALTY = 0.08
"""Subtracted from the score at the largest lag, and less for smaller ones."""


class SoundFeatures:
    """Loudness, its change and onset strength of a clip's sound at the frames of its video.

    Args:
        audio: the sound.
        fps: frames per second. Values of frame i are around `i / fps` seconds, between the frames i - 1 and i.
    """

    def __init__(self, audio: Waveform, fps: float) -> None:
        self._audio, self._fps = audio, fps
        self._size = max(round(_WINDOW * audio.rate), 2)
        self._taper = np.hanning(self._size).astype(np.float32)
        self._fft = 1 << (self._size - 1).bit_length()
        frequencies = np.fft.rfftfreq(self._fft, 1 / audio.rate)
        edges = np.geomspace(_LOW, min(_HIGH, audio.rate / 2), _BANDS + 1)
        starts = np.unique(np.searchsorted(frequencies, edges))
        self._starts, self._end = starts[:-1], int(starts[-1])
        self._blocks: dict[int, npt.NDArray[np.float32]] = {}

    def window(self, first: int, last: int, gate: Callable[[Series], Series] | None = None) -> Series:
        """Return the features `[3, N]` of frames `first` to `last`: loudness, size of its change, onset strength.

        Args:
            first: first frame; the sound is silent before the clip and after it.
            last: last frame.
            gate: shares in [0, 1] of the power, given times in seconds; None for 1.
        """
        bands = self._bands(first - 1, last)
        if gate is not None:
            times = (np.arange(len(bands)) + 0.5) / (_STEPS * self._fps) + (first - 1) / self._fps
            bands = bands * gate(times.astype(np.float64))[:, None].astype(np.float32)
        loudest = float(bands.max(initial=0.0))
        if loudest <= 0:
            return np.zeros((3, last - first + 1))
        level = np.log10(bands / loudest + _FLOOR)
        rise = np.maximum(np.diff(level, axis=0, prepend=level[:1]), 0).mean(axis=1)
        amplitude = np.sqrt(bands.sum(axis=1) / loudest)
        half = _STEPS // 2
        around = slice(half, -half)  # the interval around the moment between two frames
        loudness = amplitude[around].reshape(-1, _STEPS).mean(axis=1)
        change = np.abs(np.diff(amplitude.reshape(-1, _STEPS).mean(axis=1)))
        onset = rise[around].reshape(-1, _STEPS).sum(axis=1)
        return np.stack([loudness, change, onset]).astype(np.float64)

    def _bands(self, first: int, last: int) -> npt.NDArray[np.float32]:
        """Return the power of bands `[N * _STEPS, bands]`, cached in blocks."""
        wanted = range(first // _BLOCK, last // _BLOCK + 1)
        for block in [block for block in self._blocks if block < wanted.start]:
            del self._blocks[block]
        for block in wanted:
            if block not in self._blocks:
                self._blocks[block] = self._spectra(block * _BLOCK, _BLOCK)
        joined = np.concatenate([self._blocks[block] for block in wanted])
        start = (first - wanted.start * _BLOCK) * _STEPS
        return joined[start : start + (last - first + 1) * _STEPS]

    def _spectra(self, first: int, count: int) -> npt.NDArray[np.float32]:
        """Compute the power of bands of `count` frames, `[count * _STEPS, bands]`."""
        hop = self._audio.rate / (self._fps * _STEPS)
        middles = (np.arange(count * _STEPS) + first * _STEPS + 0.5) * hop
        starts = np.round(middles - self._size / 2).astype(np.int64)
        low, high = int(starts[0]), int(starts[-1]) + self._size
        inside = np.asarray(self._audio.samples[max(low, 0) : max(high, 0)], dtype=np.float32)
        samples = np.zeros(high - low, dtype=np.float32)
        offset = max(-low, 0)
        samples[offset : offset + len(inside)] = inside[: max(len(samples) - offset, 0)]
        pieces = np.lib.stride_tricks.sliding_window_view(samples, self._size)[starts - low] * self._taper
        power = np.square(np.abs(np.fft.rfft(pieces, self._fft)))
        return np.asarray(np.add.reduceat(power[:, : self._end], self._starts, axis=1), dtype=np.float32)


def event_gate(events: Sequence[Event]) -> Callable[[Series], Series] | None:
    """Return a function from times in seconds to the score of some events then; None without events."""
    if not events:
        return None

    def gate(times: Series) -> Series:
        share = np.zeros(len(times))
        for event in events:
            inside = (times >= event.onset) & (times < event.offset)
            if not event.curve:
                share[inside] = np.maximum(share[inside], event.score)
                continue
            known = event.onset + (np.arange(len(event.curve)) + 0.5) / event.rate
            share[inside] = np.maximum(share[inside], np.interp(times[inside], known, event.curve))
        return share

    return gate


def synchrony(motion: Series, sound: Series, weight: Series, max_lag: int) -> tuple[Series, Series]:
    """Return how well motions fit a sound at every lag, and how well they fit shifted copies of it; at most 1.

    The score at a lag is the mean over the sound's features of the squared normalized cross-correlation, with its
    sign, minus a little for the length of the lag. Copies of the sound are shifted in a circle by more than the lags.

    Args:
        motion: amount of motion of every candidate, `[C, N]`.
        sound: features of the sound, `[F, N + 2 * max_lag]`, with `max_lag` frames more on both sides.
        weight: weight of each frame, `[N]`; 0 for frames that do not count.
        max_lag: largest lag of the motion and the sound, in frames.

    Returns:
        The scores `[C, 2 * max_lag + 1]`, and the upper quartile of the best scores of the shifted copies, `[C]`.
    """
    count, length = 2 * max_lag + 1, motion.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(sound, length, axis=1)  # [F, lags, N]
    penalty = LAG_PENALTY * np.abs(np.arange(-max_lag, max_lag + 1)) / max(max_lag, 1)
    fits = _signed_squares(motion, windows, weight) - penalty  # [C, lags]
    middle = sound[:, max_lag : max_lag + length]
    if length <= 2 * count:
        return fits, np.zeros(len(motion))
    twice = np.concatenate([middle, middle], axis=1)
    copies = np.lib.stride_tricks.sliding_window_view(twice, length, axis=1)[:, count + 1 : length - count + 1]
    others = _signed_squares(motion, copies, weight)
    groups = np.lib.stride_tricks.sliding_window_view(others, min(count, others.shape[1]), axis=1)
    return fits, np.quantile((groups - penalty[: groups.shape[-1]]).max(axis=-1), 0.75, axis=1)


def _signed_squares(motion: Series, sounds: Series, weight: Series) -> Series:
    """Return the mean over features of the signed squares of weighted correlations, `[C, lags]`."""
    total = max(float(weight.sum()), 1e-12)
    moving = motion - (motion @ weight / total)[:, None]
    sounding = sounds - (sounds @ weight / total)[..., None]
    weighted = moving * weight
    power = np.einsum("cn,cn->c", weighted, moving)
    loud = np.einsum("fln,n,fln->fl", sounding, weight, sounding)
    product = np.einsum("cn,fln->cfl", weighted, sounding)
    scale = np.sqrt(power[:, None, None] * loud[None])
    correlation = np.divide(product, scale, out=np.zeros_like(product), where=scale > 1e-9)
    return np.asarray((np.sign(correlation) * np.square(correlation)).mean(axis=1))


def turn_probabilities(evidence: Series, times: Series, turns: float) -> Series:
    """Return the probability that each of several things is the one that sounds, over time, `[T, C]`.

    One sounds at a time, and another takes over at random: the forward-backward algorithm of a hidden Markov model
    (Rabiner 1989).

    Args:
        evidence: log-likelihood of each thing at each time, `[T, C]`.
        times: increasing times in seconds, `[T]`.
        turns: mean number of changes per second.
    """
    count = evidence.shape[1]
    likely = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    same = np.exp(-turns * np.diff(times) * count / max(count - 1, 1))  # else each is as likely as the others
    before, after = likely.copy(), np.ones_like(likely)
    for i in range(1, len(times)):
        before[i] *= same[i - 1] * before[i - 1] / before[i - 1].sum() + (1 - same[i - 1]) / count
    for i in range(len(times) - 2, -1, -1):
        later = likely[i + 1] * after[i + 1]
        after[i] = same[i] * later + (1 - same[i]) * later.mean()
        after[i] /= after[i].sum()
    both = before * after
    return np.asarray(both / both.sum(axis=1, keepdims=True))
