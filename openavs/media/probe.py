"""Opens local media files safely and says what is in them, without decoding more than one picture."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from openavs.media.claims import check_claims
from openavs.media.layouts import drop_channel_table
from openavs.media.limits import (
    DEFAULT_LIMITS,
    MAX_TRACKS,
    OPEN_SECONDS,
    Limits,
    Stopwatch,
    cap_allocations,
)
from openavs.media.trial import DIRECT_PIXELS, MODEST, is_modest, pixel_limit, try_first
from openavs.types import InputError

# Containers that hold media themselves. Playlists and scripts (hls, dash, concat, image sequences) stay out, because
# they make the library open other files or addresses.
FORMATS = (
    "3g2,3gp,aac,ac3,aiff,amr,ape,apng,asf,au,av1,avi,caf,dv,eac3,flac,flv,gif,h264,hevc,ivf,m4a,m4v,matroska,mj2,mov,"
    "mp3,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,opus,rm,tta,w64,wav,webm,wtv,wv,yuv4mpegpipe"
)
# Containers without a header: a duration they report is a guess from a few time stamps.
HEADLESS = frozenset({"h264", "hevc", "m4v", "mpeg", "mpegts", "mpegvideo", "obu"})
# Containers whose streams show only while FFmpeg decodes some of them, beyond the reach of the limit on pixels.
LATE = frozenset({"flv", "mpeg", "mpegts", "wtv"})
# System errors that PyAV reports for a file that is there; others mean that the content is no media.
UNREADABLE = frozenset((errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT))
# System errors of this process and not of the file that it opens.
SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
NOT_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
Matrix = tuple[int, int, int, int]
UPRIGHT: Matrix = (1, 0, 0, 1)


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds. `size` is (height, width) of the upright picture; `duration` is in seconds, that of the
    pictures if there are any (0 for pictures that come as files); `fps` is the average rate, None where unknown."""

    path: str
    kind: str  # "video", "audio", "pictures" (a folder), "picture"
    format: str
    duration: float
    size: tuple[int, int] | None = None
    fps: float | None = None
    frames: int | None = None
    video_codec: str | None = None
    audio_codec: str | None = None
    audio_rate: int | None = None
    audio_channels: int | None = None


def open_media(path: Path, limits: Limits = DEFAULT_LIMITS) -> InputContainer:
    """Opens a local file for demuxing; `InputError` for whatever is not a media file.

    Only the `file` protocol and containers that hold their own data are allowed, so a crafted file cannot make the
    process read other files or the network.
    """
    with reading(path):
        check_file(path)
        check_claims(path)
    cap_allocations()
    container = _opened_modestly(path)
    if container is None:
        with reading(path):
            try_first(path, limits)
        container = _opened(path, min(limits.max_pixels, DIRECT_PIXELS), FORMATS, MODEST)
    try:
        picked = [stream for stream in (pick_video(container), pick_audio(container)) if stream is not None]
        names = {codec_name(stream) for stream in picked if not is_modest(stream)}
        if not names:
            return container
        with reading(path):
            try_first(path, limits, names)
    except InputError:
        container.close()
        raise
    container.close()
    return open_directly(path, limits)


def _opened_modestly(path: Path) -> InputContainer | None:
    """Opens a file while FFmpeg, which decodes to see what is in it, obeys our limits; None where it would not."""
    try:
        return _opened(path, DIRECT_PIXELS, ",".join(sorted(set(FORMATS.split(",")) - LATE)), MODEST)
    except InputError as problem:
        if isinstance(problem.__cause__, ArgumentError):  # what FFmpeg says of a format that is not on the list
            return None
        raise


def open_directly(path: Path, limits: Limits) -> InputContainer:
    """As `open_media`, of a file that was checked and tried."""
    cap_allocations()
    return _opened(path, limits.max_pixels, FORMATS, None)


def _opened(path: Path, max_pixels: int, formats: str, codecs: str | None) -> InputContainer:
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": formats,
        "fflags": "+genpts",
        "max_pixels": str(max_pixels),
        "max_streams": str(MAX_TRACKS),
    }
    if codecs is not None:
        options["codec_whitelist"] = codecs
    try:  # the explicit protocol keeps names like "concat:a|b" names
        name = f"file:{path.absolute()}"
        container = av.open(name, options=options, metadata_errors="replace", timeout=OPEN_SECONDS)
    except (FFmpegError, OSError, ValueError) as error:
        if getattr(error, "errno", None) in UNREADABLE:
            raise InputError(_unreadable(path, error)) from error
        raise InputError(_not_media(path)) from error
    if not container.streams.video and not container.streams.audio:
        container.close()
        raise InputError(_not_media(path))
    for stream in container.streams.audio:
        if stream.codec_context is not None:  # None: FFmpeg has no decoder
            drop_channel_table(stream.codec_context)
    return container


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a system error at an input file into InputError; a shortage in this process stays an OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        raise InputError(_unreadable(path, error)) from error


def check_file(path: Path) -> None:
    """Refuses what is missing, empty, unreadable or no regular file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"there is no file {path}; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(_unreadable(path, error)) from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a regular file; give a media file or a folder of pictures")
    if not os.access(path, os.R_OK):
        raise InputError(_unreadable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES))))
    if found.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); fetch or export it again")


def pick_video(container: InputContainer) -> VideoStream | None:
    """The first stream of moving pictures; cover art and thumbnails are not video."""
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & NOT_PICTURES:
            return stream
    return None


def pick_audio(container: InputContainer) -> AudioStream | None:
    """The sound track a player would choose."""
    stream = container.streams.best("audio")
    return stream if isinstance(stream, AudioStream) and stream.codec_context is not None else None


def require_video(container: InputContainer, path: Path, limits: Limits) -> VideoStream:
    """The video stream, its size checked against the limit and its decoder set up; `InputError` if there is none."""
    stream = pick_video(container)
    if stream is None:
        what = "has sound but no picture" if container.streams.audio else "holds no video that can be decoded"
        raise InputError(f"{path} {what}; give a video, or a picture with the sound beside it (audio=...)")
    context = stream.codec_context
    if context.width * context.height > limits.max_pixels:
        raise InputError(
            f"{path} has frames of {context.width} x {context.height} pixels, over the limit of {limits.max_pixels}; "
            "scale it down or raise Limits.max_pixels"
        )
    # set before the decoder opens, so that a header that lies about the size is refused, too
    context.options = {"max_pixels": str(pixel_limit(stream, limits))}
    # above this size, decoding several frames at once costs too much memory
    context.thread_type = "AUTO" if context.width * context.height <= DIRECT_PIXELS else "SLICE"
    context.thread_count = min(4, os.cpu_count() or 1)
    return stream


def codec_name(stream: AudioStream | VideoStream) -> str:
    """The codec's own name, whichever decoder stands for it (mp3, not mp3float)."""
    return str(stream.codec_context.codec.canonical_name)


def seconds(value: int | None, base: Fraction | None) -> float | None:
    """A stream's time stamp in seconds."""
    return None if value is None or base is None else float(value * base)


def video_duration(container: InputContainer, stream: VideoStream, start: float) -> float | None:
    """Length of the video in seconds as the header promises it, else None; `start` is its first picture's time."""
    if container.format.name in HEADLESS:
        return None
    own = seconds(stream.duration, stream.time_base)
    if own is not None and own > 0:
        return own
    tag = _parse_clock(stream.metadata.get("DURATION", ""))  # Matroska: the end of this track
    if tag is not None and tag > start:
        return tag - start
    if container.duration is not None and container.duration > 0:
        end = (container.duration + (container.start_time or 0)) / 1e6
        return max(end - start, 0.0) or None
    return None


def scan_duration(path: Path, limits: Limits, start: float) -> float:
    """Length of the video in seconds from its packets, for files whose header does not say (raw or live streams)."""
    with open_media(path, limits) as container:
        stream = require_video(container, path, limits)
        tick = float(1 / (stream.average_rate or stream.guessed_rate or Fraction(25)))
        end, newest = start, float("-inf")
        watch = Stopwatch(path)
        try:
            for packet in watch.timed(container.demux(stream)):
                time = seconds(packet.pts, stream.time_base)
                order = seconds(packet.dts, stream.time_base)
                if not packet.size:
                    continue
                if time is None or (order is not None and order <= newest):
                    end += tick  # no time stamps, or they begin anew: the decoder counts on, too
                else:
                    end = max(end, time + (seconds(packet.duration, stream.time_base) or tick))
                newest = max(newest, order if order is not None else newest)
        except FFmpegError:
            pass  # what lies behind the damage cannot be decoded either; the decoder reports it
        return end - start


def display_matrix(frame: VideoFrame) -> Matrix:
    """The linear part (a, b, c, d) of a frame's display matrix, x' = a x + c y and y' = b x + d y.

    To be asked of one frame per stream: looking at its side data makes a reference cycle, so it is not freed at once.
    """
    data: Any = frame.side_data  # typed differently from release to release
    if "DISPLAYMATRIX" not in data:
        return UPRIGHT
    values = memoryview(bytes(data["DISPLAYMATRIX"])).cast("i")
    return values[0], values[1], values[3], values[4]


def is_turned(matrix: Matrix) -> bool:
    """Whether a display matrix swaps height and width."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def upright_size(frame: VideoFrame, matrix: Matrix) -> tuple[int, int]:
    """(height, width) of a decoded frame after its display matrix."""
    return (frame.width, frame.height) if is_turned(matrix) else (frame.height, frame.width)


def _parse_clock(text: str) -> float | None:
    """Seconds of a text like 00:01:02.500000000."""
    try:
        hours, minutes, rest = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(rest)
    except ValueError:
        return None


def _unreadable(path: Path, error: Exception) -> str:
    if not isinstance(error, OSError):
        return f"{str(path)[:200]!r} cannot be read (its name holds a NUL character); check the path"
    cure = "change its permissions" if error.errno in (errno.EACCES, errno.EPERM) else "check the path and its disk"
    return f"{str(path)[:200]} cannot be read ({error.strerror}); {cure}"


def _not_media(path: Path) -> str:
    return (
        f"{path} cannot be read as video or sound: it is no media file, is truncated before its index, has more than "
        f"{MAX_TRACKS} tracks, or is a playlist, which is refused; give one complete local video or sound file"
    )
