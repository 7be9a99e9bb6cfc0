"""Log-mel spectrograms of VGGish, in examples of 0.96 s."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from openavs.media.audio import resample
from openavs.structures.types import Waveform

RATE = 16_000  # Hz
WINDOW, HOP, FFT = 400, 160, 512  # samples: 25 ms every 10 ms
BANDS, LOWEST, HIGHEST = 64, 125.0, 7500.0  # mel bands, Hz
EXAMPLE = 96  # frames of an example; examples do not overlap
SHORTEST = WINDOW + (EXAMPLE - 1) * HOP  # samples of one example

Floats = npt.NDArray[np.float32]


def log_mel(samples: Floats) -> Floats:
    """Return the log-mel spectrogram `[frames, 64]` of samples `[N]` at 16 kHz; frames = 1 + (N - 400) // 160.

    Magnitudes of a 512-point FFT under a periodic Hann window, without padding, in 64 triangular mel bands; log(x +
    0.01). Computed in float64, as the published code does.
    """
    if len(samples) < WINDOW:
        return np.zeros((0, BANDS), dtype=np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi / WINDOW * np.arange(WINDOW))
    magnitude = np.abs(np.fft.rfft(windows * hann, FFT))
    return np.log(magnitude @ mel_matrix() + 0.01).astype(np.float32)


@cache
def mel_matrix() -> npt.NDArray[np.float64]:
    """Return the matrix from spectrum bins to mel bands `[257, 64]`: triangles in mel (1127 ln(1 + f / 700)), no DC."""
    edges = np.linspace(_mel(LOWEST), _mel(HIGHEST), BANDS + 2)
    bins = _mel(np.linspace(0.0, RATE / 2, FFT // 2 + 1))[:, None]
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((bins - low) / (center - low), (high - bins) / (high - center))
    matrix = np.maximum(triangles, 0.0)
    matrix[0] = 0.0
    matrix.flags.writeable = False
    return np.asarray(matrix, dtype=np.float64)


def _mel(hertz: Any) -> Any:
    return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)


def examples(waveform: Waveform) -> Floats:
    """Return VGGish's input `[n, 96, 64]`: whole examples of 0.96 s; the rest at the end is dropped."""
    spectrogram = log_mel(resample(waveform, RATE).samples)
    count = len(spectrogram) // EXAMPLE
    return spectrogram[: count * EXAMPLE].reshape(count, EXAMPLE, BANDS)
