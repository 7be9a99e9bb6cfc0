"""Test-decodes files with uncommon codecs in a memory-limited child process.

FFmpeg has about five hundred decoders, and a few allocate gigabytes because a header of a kilobyte claims them. The
standards of the common codecs limit the number of frames and tables that a decoder keeps; for these, a limit on pixels
is a limit on memory, and they are decoded directly. A file with another codec, or with frames above `DIRECT_PIXELS`, is
first decoded to its end by a child under a limit of address space (`sandbox_child.py`). The child also isolates
decoders that crash or never end, and FFmpeg's own decoding when it probes a file. Linux only: other systems have no
such limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from openavs.errors import InputError
from openavs.media.limits import DecodeTimeBudget, MediaLimits

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
