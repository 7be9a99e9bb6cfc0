"""Audio windows of frames."""

from __future__ import annotations

import numpy as np
import pytest

from openavs.pipeline.frames import audio_window
from openavs.structures.types import Waveform


@pytest.mark.parametrize(
    ("at", "fps", "length", "expected"),
    [
        (0.9375, 1.0, 1.0, (0.0, 1.0)),  # AVSBench: the frame at 15/16 of a second and that second
        (0.5, 1.0, 1.0, (0.0, 1.0)),
        (4.5, 1.0, 1.0, (4.0, 5.0)),
        (1.25, 2.0, 1.0, (0.75, 1.75)),  # two frames a second share parts of their windows
        (0.25, 2.0, 1.0, (0.0, 0.75)),  # there is no sound before the start
        (4.5, 1.0, 3.0, (3.0, 5.0)),  # nor after the end
    ],
)
def test_the_window_of_a_frame(at: float, fps: float, length: float, expected: tuple[float, float]) -> None:
    sound = Waveform(np.zeros(5 * 1000, dtype=np.float32), 1000)
    window = audio_window(sound, at, fps, length)
    assert (window.start, window.end) == pytest.approx(expected)
    assert len(window.audio.samples) == round((expected[1] - expected[0]) * 1000)


def test_past_the_end_of_the_sound_there_is_silence() -> None:
    window = audio_window(Waveform(np.ones(5000, dtype=np.float32), 1000), 9.5, fps=1.0, length=1.0)
    assert len(window.audio.samples) == 0
    assert window.audio.dbfs == float("-inf")
