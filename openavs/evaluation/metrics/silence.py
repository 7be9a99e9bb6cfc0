"""Metrics of frames with an empty truth: the share left empty, and the share of pixels marked.

A truth is empty if nothing sounds, or if the source is off the screen. The sound level of the frame's second separates
the two cases, if the audio file exists.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Masks
from openavs.evaluation.metrics.functional import Figures
from openavs.media.audio import read_audio
from openavs.structures.types import BoolMask, Waveform
from openavs.utils.fs import is_missing

logger = logging.getLogger(__name__)

SILENT_DBFS = -60.0  # the level of silence in the recipes


class SilenceMetrics:
    """Share of silent frames left empty, and mean share of their pixels that are marked."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Reset the state to no clips."""
        self.frames = self.empty = 0
        self._area = 0.0

    def update(self, predicted: npt.NDArray[Any], silent: BoolMask) -> None:
        """Add one clip: masks or label maps `[T, H, W]` (non-zero is marked), and a flag for each silent frame `[T]`.

        The caller defines silent: no sound, a sound from off the screen, or any empty truth.
        """
        for frame in predicted[silent]:
            marked = int(np.count_nonzero(frame))
            self.frames += 1
            self.empty += marked == 0
            self._area += marked / frame.size

    def compute(self, name: str = "silent") -> Figures:
        """Return `<name>_accuracy` (share left empty) and `<name>_area` (mean share marked), None without frames."""
        if not self.frames:
            return {f"{name}_accuracy": None, f"{name}_area": None}
        return {f"{name}_accuracy": self.empty / self.frames, f"{name}_area": self._area / self.frames}


class EmptyFrameMetrics:
    """Silence metrics of all frames with an empty truth, of the silent ones, and of those with an off-screen sound.

    A truth of label maps is empty if it holds only background. A prediction is marked where its probability is above
    0.5 or its class is not 0.

    Args:
        classes: the number of classes of label maps, 0 for binary masks.
    """

    def __init__(self, classes: int = 0) -> None:
        self._classes = classes
        self.reset()

    def reset(self) -> None:
        """Reset the state to no clips."""
        self._all, self._silent, self._offscreen = SilenceMetrics(), SilenceMetrics(), SilenceMetrics()

    def update(self, clip: BenchmarkClip, predicted: Masks, truth: Masks) -> None:
        """Add a clip's annotated frames `[T, H, W]`; its audio is only read if a truth is empty."""
        shown = (truth > 0) & (truth < self._classes) if self._classes else truth
        empty = np.logical_not(shown.any(axis=(1, 2)), dtype=np.bool_)
        if not empty.any():
            return
        marked = predicted > self._threshold(predicted)
        self._all.update(marked, empty)
        audio = _read_audio(clip)
        if audio is not None:
            quiet = np.array([audio.cut(second, second + 1).dbfs < SILENT_DBFS for second in clip.annotated])
            self._silent.update(marked, empty & quiet)
            self._offscreen.update(marked, empty & ~quiet)

    def compute(self) -> Figures:
        """Return `_frames`, `_accuracy` and `_area` of `empty`, `silent` and `offscreen` frames.

        `unheard_frames` counts those of clips without a readable audio file, which are neither.
        """
        figures: Figures = {}
        for name, metrics in (("empty", self._all), ("silent", self._silent), ("offscreen", self._offscreen)):
            figures |= {f"{name}_frames": metrics.frames} | metrics.compute(name)
        return figures | {"unheard_frames": self._all.frames - self._silent.frames - self._offscreen.frames}

    def _threshold(self, predicted: Masks) -> float:
        if self._classes or predicted.dtype == np.bool_:
            return 0
        return 127 if predicted.dtype == np.uint8 else 0.5


def _read_audio(clip: BenchmarkClip) -> Waveform | None:
    if is_missing(clip.audio):
        return None
    try:
        return read_audio(clip.audio)
    except InputError as error:
        logger.warning("%s; its frames count as neither silent nor off-screen", error)
        return None
