"""Limits on the memory and time that a media file may take, and the test of files with uncommon codecs.

Most are properties of the file; the error names the limit. The limits on time and on filled-in silence grow with the
size of the file. docs/media.md lists them all.

FFmpeg has about five hundred decoders, and a few allocate gigabytes because a header of a kilobyte claims them. The
standards of the common codecs limit the number of frames and tables that a decoder keeps; for these, a limit on pixels
is a limit on memory, and they are decoded directly. A file with another codec, or with frames above `DIRECT_PIXELS`, is
first decoded to its end by a child under a limit of address space (`sandbox_child.py`). The child also isolates
decoders that crash or never end, and FFmpeg's own decoding when it probes a file. Linux only: other systems have no
such limit.
"""

from __future__ import annotations

import ctypes
import json
import logging
import mmap
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeVar

import av
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from openavs.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")
MEGABYTE = 1 << 20

MAX_TRACKS = 64  # of one file; FFmpeg sets up a decoder and an index for each
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; other rates are damaged headers, and cost memory to resample
MAX_ALLOCATION = 512 * MEGABYTE  # bytes that FFmpeg may allocate at once: a frame, the index of a track
OPEN_SECONDS = 60.0  # for reading a header, and for reading one packet
DECODE_SECONDS, DECODE_SECONDS_PER_MEGABYTE = 120.0, 60.0
SILENCE, SILENCE_PER_MEGABYTE = 3600.0, 3600.0  # s of silence that fill gaps in a track


@dataclass(frozen=True)
class MediaLimits:
    """Limits that callers may change; files over them raise InputError.

    Attributes:
        max_pixels: pixels of a frame, from the header.
        max_duration: seconds, from the header.
        max_frames: sampled frames of a clip.
        max_memory: bytes that a decoder may take (`test_decode`).
    """

    max_pixels: int = 1 << 26  # 8192 x 8192; 8K video is half of it
    max_duration: float = 24 * 3600.0
    max_frames: int = 1 << 20  # sampled; 24 hours at 12 a second
    max_memory: int = 3 << 30  # bytes


DEFAULT_LIMITS = MediaLimits()


def check_rate(rate: int, path: Path) -> None:
    """Raise InputError for a sample rate in Hz outside of the limits."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(
            f"the sound of {path} has {rate} samples a second, outside of the limits of {MIN_RATE} and {MAX_RATE}; "
            "its header is damaged, or it has to be resampled first"
        )


def longest_silence(size: int) -> float:
    """Return the seconds of silence that may be filled in for a file of `size` bytes."""
    return SILENCE + SILENCE_PER_MEGABYTE * size / MEGABYTE


class DecodeTimeBudget:
    """Measures the time spent on decoding one file, without the time spent on its frames by others.

    A context manager: its exit raises InputError once the total is over the limit for a file of this size.
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
                "it is damaged or made to stall; encode it again"
            )

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items and count the time that each takes to arrive."""
        source = iter(items)
        while True:
            with self:
                item = next(source, None)
            if item is None:
                return
            yield item


@cache
def cap_allocations() -> None:
    """Make FFmpeg refuse any single allocation over `MAX_ALLOCATION` in this process; its own limit is 2 GiB.

    A header of a kilobyte can claim an index of gigabytes. PyAV does not expose the setting, so the function is looked
    up in the libraries that PyAV's modules are linked with; where this fails (Windows), FFmpeg's own limit holds.
    """
    import av._core

    try:
        ctypes.CDLL(av._core.__file__).av_max_alloc(ctypes.c_size_t(MAX_ALLOCATION))
    except (OSError, AttributeError, TypeError) as error:
        logger.debug("FFmpeg keeps its own limit on allocations: %s", error)


SPARE = 1 << 21  # samples; they cost 70 MB at most
_TABLES = re.compile(rb"stsz|stz2|trun")
_HAS_ENTRIES = 0x100 | 0x200 | 0x400 | 0x800  # a trun's flags: duration, size, flags or offset of each sample


def check_sample_tables(path: Path) -> None:
    """Raise InputError for an mp4 or mov file whose tables promise more samples than the file has bytes.

    FFmpeg indexes every promised sample, and a box of twenty bytes can promise billions. Only two kinds of tables can
    promise more than they contain: `stsz` with one size for all samples, and `trun` without entries. Every real sample
    has at least a byte in the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if not _is_boxes(file.read(8), size):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            claimed = sum(_claims(data, start, end) for start, end in _indexes(data, size))
    if claimed > size + SPARE:
        raise InputError(
            f"{path} promises {claimed} samples of sound or pictures in {size} bytes; it is truncated or made to fill "
            "the memory; download or export it again"
        )


def _is_boxes(head: bytes, size: int) -> bool:
    """Return whether a file may begin with a box: a length within the file or 0 or 1, and a name in ASCII."""
    if len(head) < 8:
        return False
    length = int.from_bytes(head[:4], "big")
    return (length in (0, 1) or 8 <= length <= size) and all(32 <= letter < 127 for letter in head[4:])


def _indexes(data: mmap.mmap, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the top-level boxes with tables; a length beyond the end, or 0, extends to the end."""
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
    """Return the number of samples that tables without entries promise in a part of the file."""
    claimed = 0
    for found in _TABLES.finditer(data, start, end):
        flags, first, second = struct.unpack(">III", data[found.end() : found.end() + 12].ljust(12, b"\0"))
        if found[0] == b"trun":
            claimed += 0 if flags & _HAS_ENTRIES else first
        elif first:  # one size for all samples; 0: each sample has an entry
            claimed += second
    return claimed


DIRECT_PIXELS = 4096 * 2304
"""Largest frame that is decoded directly: 37 of them, the most that H.264 keeps, in 12 bits and 4:4:4, are 2.6 GB."""
VIDEO_CODECS = (
    "dnxhd dvvideo ffvhuff flv gif h263 h263p h264 hevc huffyuv libdav1d mjpeg mpeg1video mpeg2video mpeg4 mpegvideo "
    "msmpeg4 msmpeg4v1 msmpeg4v2 png prores rawvideo theora v210 vc1 vp8 vp9 wmv1 wmv2 wmv3"
)
AUDIO_CODECS = (
    "aac ac3 adpcm_ima_qt adpcm_ima_wav adpcm_ms alac amrnb amrwb eac3 flac libopencore_amrnb libopencore_amrwb mp1 "
    "mp1float mp2 mp2float mp3 mp3float opus vorbis wmav1 wmav2"
)
STARTUP_SECONDS = 30.0  # to start a process on a busy machine
TRUSTED_CODECS = ",".join(
    sorted({*VIDEO_CODECS.split(), *AUDIO_CODECS.split(), *(n for n in av.codecs_available if n[:4] == "pcm_")})
)
"""FFmpeg's names of the decoders whose memory is bounded by the size of a frame."""


def is_trusted_codec(stream: VideoStream | AudioStream) -> bool:
    """Return whether a stream's decoder is trusted and, for video, whether its frame size is known and small enough."""
    if stream.codec_context.codec.name not in TRUSTED_CODECS.split(","):
        return False
    if isinstance(stream, AudioStream):
        return True
    return 0 < stream.codec_context.width * stream.codec_context.height <= DIRECT_PIXELS


def pixel_limit(stream: VideoStream, limits: MediaLimits) -> int:
    """Return the decoder's limit on the pixels of a frame, independent of the container."""
    return min(limits.max_pixels, DIRECT_PIXELS) if is_trusted_codec(stream) else limits.max_pixels


def test_decode(path: Path, limits: MediaLimits, codecs: Collection[str] = ()) -> None:
    """Decode a file to its end in a child process; without `codecs` only probe it there.

    Raises:
        InputError: the child takes more memory than the limit, crashes or takes too long.
    """
    if sys.platform != "linux":
        return
    seen = path.stat()
    which = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)
    problem = _problem(str(path.absolute()), which, limits, bool(codecs))
    if problem is not None:
        named = f" ({', '.join(sorted(codecs))})" if codecs else ""
        raise InputError(f"{path}{named} {problem}")


@lru_cache(maxsize=1024)
def _problem(name: str, seen: tuple[int, ...], limits: MediaLimits, whole: bool) -> str | None:
    """Return a clause about the failed test; an unchanged file is not tested again."""
    request = json.dumps({"path": name, "limits": asdict(limits), "whole": whole})
    timeout = 2 * DecodeTimeBudget(Path(name)).limit + STARTUP_SECONDS  # for audio and video
    try:
        # -P: no modules of the working directory. Arenas would add unused address space.
        done = subprocess.run(
            [sys.executable, "-P", "-c", "from openavs.media.sandbox_child import main; main()"],
            input=request,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"is not decoded within {timeout:.0f} s; it is damaged or made to stall; encode it again"
    if done.returncode or not done.stdout.startswith("{"):
        return "ends the process that decodes it; it is damaged or made to crash it; encode it again"
    if json.loads(done.stdout)["fits"]:
        return None
    return (
        f"takes more memory to decode than the limit of {limits.max_memory >> 20} MB; encode it again, smaller or with "
        "another codec, or raise Limits.max_memory"
    )
