"""What a media file may ask of this machine: the place for most limits, so that no file decides over memory or time.

Most are properties of the file that are refused with a sentence that names the limit; those on time and on silence grow
with the file's size, since a large file may well take long and a small one may not. docs/media.md has them all.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from openavs.errors import InputError

log = logging.getLogger(__name__)
T = TypeVar("T")
MEGABYTE = 1 << 20

MAX_TRACKS = 64  # of one file; FFmpeg sets up a decoder and an index for each
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; what lies outside is a damaged header, and costs memory to resample
MAX_PIECE = 512 * MEGABYTE  # what FFmpeg may allocate at once: a picture, the index of a track
OPEN_SECONDS = 60.0  # for reading a header, and for reading one packet
DECODE_SECONDS, DECODE_SECONDS_PER_MEGABYTE = 120.0, 60.0
SILENCE, SILENCE_PER_MEGABYTE = 3600.0, 3600.0  # s that are filled in where a track has gaps


@dataclass(frozen=True)
class MediaLimits:
    """What is refused: frames of more pixels, clips of more seconds or of more sampled frames, from the header; files
    whose decoder takes more bytes (`sandbox.py`)."""

    max_pixels: int = 1 << 26  # 8192 x 8192; 8K video is half of it
    max_duration: float = 24 * 3600.0
    max_frames: int = 1 << 20  # sampled; 24 hours at 12 a second
    max_memory: int = 3 << 30  # bytes


DEFAULT_LIMITS = MediaLimits()


def check_rate(rate: int, path: Path) -> None:
    """Refuses a sample rate in Hz that no sound has."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(
            f"the sound of {path} has {rate} samples a second, outside of the limits of {MIN_RATE} and {MAX_RATE}; "
            "its header is damaged, or it is to be resampled first"
        )


def longest_silence(size: int) -> float:
    """How many seconds of silence are filled in for a file of `size` bytes."""
    return SILENCE + SILENCE_PER_MEGABYTE * size / MEGABYTE


class DecodeTimeBudget:
    """Adds up the time that is spent on decoding one file; what is done with the pictures meanwhile is not counted.

    `with watch:` counts, and raises InputError once more has been spent than a file of this size may take.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.spent, self._began = path, 0.0, 0.0
        self.limit = DECODE_SECONDS + DECODE_SECONDS_PER_MEGABYTE * path.stat().st_size / MEGABYTE

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *problem: object) -> None:
        self.spent += time.monotonic() - self._began
        if self.spent > self.limit:
            raise InputError(
                f"decoding {self.path} takes longer than {self.limit:.0f} s, the limit for a file of its size; "
                "it is damaged or made to stall, so encode it anew"
            )

    def timed(self, things: Iterable[T]) -> Iterator[T]:
        """Hands things on and counts the time that each takes to come."""
        source = iter(things)
        while True:
            with self:
                thing = next(source, None)
            if thing is None:
                return
            yield thing


@cache
def cap_allocations() -> None:
    """Has FFmpeg refuse any single allocation over `MAX_PIECE`, in this process and once: its own limit is 2 GiB.

    A header of a kilobyte can claim an index of gigabytes. PyAV does not offer the setting, so it is found among the
    libraries that PyAV's modules were linked with; where a system does not look there (Windows), FFmpeg's own holds.
    """
    import av._core

    try:
        ctypes.CDLL(av._core.__file__).av_max_alloc(ctypes.c_size_t(MAX_PIECE))
    except (OSError, AttributeError, TypeError) as problem:
        log.debug("FFmpeg keeps its own limit on allocations: %s", problem)
