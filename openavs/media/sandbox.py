"""What is not known to be modest is decoded in a process of its own first, which may take so much memory and no more.

FFmpeg has some five hundred decoders, and a few ask for gigabytes because a header of a kilobyte says so. Those that
nearly all files use hold a number of pictures and tables that their standards limit, so a limit on the pixels of a
picture is one on memory: they decode at once. A file with another codec, or with pictures above `DIRECT_PIXELS`, is
decoded to its end by a child under a limit of address space (`sandbox_child.py`), once; what the child survives within
the limit is decoded here like any other. The child also stands in for us where a decoder crashes or never ends, and
where FFmpeg decodes to find out what a file holds. Linux only: other systems keep no such limit.
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
"""Of a picture that is decoded at once: 37 of them, as many as H.264 can hold, in 12 bits and 4:4:4, are 2.6 GB."""
PICTURES = (
    "dnxhd dvvideo ffvhuff flv gif h263 h263p h264 hevc huffyuv libdav1d mjpeg mpeg1video mpeg2video mpeg4 mpegvideo "
    "msmpeg4 msmpeg4v1 msmpeg4v2 png prores rawvideo theora v210 vc1 vp8 vp9 wmv1 wmv2 wmv3"
)
SOUNDS = (
    "aac ac3 adpcm_ima_qt adpcm_ima_wav adpcm_ms alac amrnb amrwb eac3 flac libopencore_amrnb libopencore_amrwb mp1 "
    "mp1float mp2 mp2float mp3 mp3float opus vorbis wmav1 wmav2"
)
SPARE_SECONDS = 30.0  # to start a process, on a machine that is busy


MODEST = ",".join(sorted({*PICTURES.split(), *SOUNDS.split(), *(n for n in av.codecs_available if n[:4] == "pcm_")}))
"""The decoders that are known to be modest, by the names that FFmpeg has for them."""


def is_trusted_codec(stream: VideoStream | AudioStream) -> bool:
    """Whether a stream's decoder is one of those and, of pictures, whether their size is known and not too large."""
    if stream.codec_context.codec.name not in MODEST.split(","):
        return False
    if isinstance(stream, AudioStream):
        return True
    return 0 < stream.codec_context.width * stream.codec_context.height <= DIRECT_PIXELS


def pixel_limit(stream: VideoStream, limits: MediaLimits) -> int:
    """What the decoder may allow a picture, whatever the container says of it."""
    return min(limits.max_pixels, DIRECT_PIXELS) if is_trusted_codec(stream) else limits.max_pixels


def test_decode(path: Path, limits: MediaLimits, codecs: Collection[str] = ()) -> None:
    """Has a child decode a file that has these codecs to its end or, with none of them, look what is in it.

    Raises:
        InputError: that takes more memory than the limit, crashes or takes too long.
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
    """What speaks against decoding a file here; a file that is the same still is not tried again."""
    told = json.dumps({"path": name, "limits": asdict(limits), "whole": whole})
    patience = 2 * DecodeTimeBudget(Path(name)).limit + SPARE_SECONDS  # for the sound and for the pictures
    try:
        # -P: no module of the working directory. Arenas are address space that nobody uses.
        done = subprocess.run(
            [sys.executable, "-P", "-c", "from openavs.media.sandbox_child import main; main()"],
            input=told,
            capture_output=True,
            text=True,
            timeout=patience,
            env={**os.environ, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"is not decoded within {patience:.0f} s; it is damaged or made to stall, so encode it anew"
    if done.returncode or not done.stdout.startswith("{"):
        return "ends the process that decodes it; it is damaged or made to, so encode it anew"
    if json.loads(done.stdout)["fits"]:
        return None
    return (
        f"takes more memory to decode than the limit of {limits.max_memory >> 20} MB; encode it anew, smaller or with "
        "another codec, or raise Limits.max_memory"
    )
