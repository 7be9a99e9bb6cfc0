"""Which sound belongs to which frame."""

from __future__ import annotations

import math

from openavs.errors import InputError
from openavs.structures.types import AudioWindow, Clip, Waveform


def audio_windows(clip: Clip, length: float, context: float | None = None) -> list[AudioWindow]:
    """The sound of every frame of a clip, `length` seconds each, and `context` seconds around it where that is given.

    Raises:
        InputError: the clip has no sound track.
    """
    if clip.audio is None:
        raise InputError(f"{clip.source or clip.id} has no sound track; give its sound with --audio FILE")
    return [audio_window(clip.audio, at, clip.fps, length, clip.labels, context) for at in clip.times]


def audio_window(
    audio: Waveform,
    at: float,
    fps: float,
    length: float,
    labels: tuple[str, ...] = (),
    context: float | None = None,
) -> AudioWindow:
    """The sound of a frame: `length` seconds around the middle of the frame interval that a time falls into.

    At one frame per second and one second of sound this is AVSBench's pairing: frame i with second i.
    """
    middle = (math.floor(at * fps + 1e-6) + 0.5) / fps
    start, end = max(middle - length / 2, 0.0), min(middle + length / 2, audio.duration)
    around = None if context is None else audio.cut(middle - context / 2, middle + context / 2)
    return AudioWindow(audio.cut(start, end), start, max(start, end), labels, around)
