"""Frames without any true mask, as reviewers of this field ask: are they left empty, and how much is marked there?

A frame's truth is empty where nothing sounds, or where what sounds is off the screen. The level of the frame's second
of sound tells the two apart, if the wav is there.
"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Masks
from openavs.evaluation.metrics.aggregation import Figures
from openavs.evaluation.metrics.metrics import SilenceMetrics
from openavs.media import read_audio
from openavs.structures.types import Waveform
from openavs.utils.fs import is_missing

log = logging.getLogger(__name__)

SILENT_DBFS = -60.0  # the recipes' level, below which nothing is heard


class SilenceAccumulator:
    """Figures of the frames with empty truth: all of them, the silent ones and those with a sound from off the screen.

    `classes` is the number of classes of label maps, 0 for binary masks. A truth of label maps is empty where it holds
    no class but the background; a prediction is marked where its probability is above 0.5 or its class not 0.
    """

    def __init__(self, classes: int = 0) -> None:
        self._classes = classes
        self._all, self._silent, self._offscreen = SilenceMetrics(), SilenceMetrics(), SilenceMetrics()

    def add(self, clip: BenchmarkClip, predicted: Masks, truth: Masks) -> None:
        """Adds a clip's annotated frames, `[T, H, W]` both; the sound is read only if a truth is empty."""
        shown = (truth > 0) & (truth < self._classes) if self._classes else truth
        empty = np.logical_not(shown.any(axis=(1, 2)), dtype=np.bool_)
        if not empty.any():
            return
        marked = np.asarray(predicted > (0 if self._classes or predicted.dtype == np.bool_ else _half(predicted)))
        self._all.update(marked, empty)
        sound = _sound(clip)
        if sound is not None:
            quiet = np.array([_level(sound, second) < SILENT_DBFS for second in clip.annotated])
            self._silent.update(marked, empty & quiet)
            self._offscreen.update(marked, empty & ~quiet)

    def compute(self) -> Figures:
        """Of `empty`, `silent` and `offscreen` frames: `_frames`, `_accuracy` (share left empty), `_area` (mean share).

        `unheard_frames` are those whose clip has no sound to tell silent from off-screen by.
        """
        figures: Figures = {}
        for name, metrics in (("empty", self._all), ("silent", self._silent), ("offscreen", self._offscreen)):
            figures |= {f"{name}_frames": metrics.frames} | metrics.compute(name)
        return figures | {"unheard_frames": self._all.frames - self._silent.frames - self._offscreen.frames}


def _half(predicted: npt.NDArray[np.generic]) -> float:
    """What a probability must exceed: 127 of 255, or 0.5."""
    return 127 if predicted.dtype == np.uint8 else 0.5


def _level(sound: Waveform, second: int) -> float:
    """The level of the second that belongs to a frame, in dBFS; past the sound's end there is silence."""
    return sound.cut(second, second + 1).dbfs


def _sound(clip: BenchmarkClip) -> Waveform | None:
    if is_missing(clip.audio):
        return None
    try:
        return read_audio(clip.audio)
    except InputError as problem:
        log.warning("%s; its frames are counted as neither silent nor off-screen", problem)
        return None
