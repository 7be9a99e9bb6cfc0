"""What a media file may ask of this machine: the place for most limits, so that no file decides over memory or time.

Most are properties of the file that are refused with a sentence that names the limit; those on time and on silence grow
with the file's size, since a large file may well take long and a small one may not. docs/media.md has them all.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import re
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from openavs.errors import InputError

logger = logging.getLogger(__name__)

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
        logger.debug("FFmpeg keeps its own limit on allocations: %s", problem)


SPARE = 1 << 21  # samples; so many cost 70 MB at most
_TABLES = re.compile(rb"stsz|stz2|trun")
_HAS_ENTRIES = 0x100 | 0x200 | 0x400 | 0x800  # a trun's flags: duration, size, flags or offset of each sample


def check_sample_tables(path: Path) -> None:
    """InputError for an mp4, mov or the like whose tables promise more samples than the file has bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if not _is_boxes(file.read(8), size):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            claimed = sum(_claims(data, start, end) for start, end in _indexes(data, size))
    if claimed > size + SPARE:
        raise InputError(
            f"{path} promises {claimed} samples of sound or pictures in {size} bytes; it is cut short or made to fill "
            "the memory, so fetch or export it again"
        )


def _is_boxes(head: bytes, size: int) -> bool:
    """Whether a file may begin with a box: its length, which lies in the file or is unsaid, and a name in ASCII."""
    if len(head) < 8:
        return False
    length = int.from_bytes(head[:4], "big")
    return (length in (0, 1) or 8 <= length <= size) and all(32 <= letter < 127 for letter in head[4:])


def _indexes(data: mmap.mmap, size: int) -> Iterator[tuple[int, int]]:
    """Where the boxes at the top lie that hold tables; a length beyond the end, or 0, reaches to the end."""
    at = 0
    while at + 8 <= size:
        length, name = struct.unpack(">I4s", data[at : at + 8])
        if length == 1 and at + 16 <= size:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        end = size if length == 0 else min(at + length, size)
        if length != 0 and length < 8:
            return
        if name in (b"moov", b"moof"):
            yield at, end
        at = end


def _claims(data: mmap.mmap, start: int, end: int) -> int:
    """How many samples the tables without entries in a part of the file promise."""
    claimed = 0
    for found in _TABLES.finditer(data, start, end):
        flags, first, second = struct.unpack(">III", data[found.end() : found.end() + 12].ljust(12, b"\0"))
        if found[0] == b"trun":
            claimed += 0 if flags & _HAS_ENTRIES else first
        elif first:  # a size for all; where it is 0 each sample has an entry
            claimed += second
    return claimed
