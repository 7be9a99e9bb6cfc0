"""Safe opening and probing of local media files; at most one frame is decoded."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from openavs.errors import InputError
from openavs.media.limits import (
    DEFAULT_LIMITS,
    DIRECT_PIXELS,
    MAX_TRACKS,
    OPEN_SECONDS,
    TRUSTED_CODECS,
    DecodeTimeBudget,
    MediaLimits,
    cap_allocations,
    check_sample_tables,
    is_trusted_codec,
    pixel_limit,
    test_decode,
)

# Containers that hold media themselves. Playlists and scripts (hls, dash, concat, image sequences) are excluded,
# because they make FFmpeg open other files or addresses.
FORMATS = (
    "3g2,3gp,aac,ac3,aiff,amr,ape,apng,asf,au,av1,avi,caf,dv,eac3,flac,flv,gif,h264,hevc,ivf,m4a,m4v,matroska,mj2,mov,"
    "mp3,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,opus,rm,tta,w64,wav,webm,wtv,wv,yuv4mpegpipe"
)
# Containers without a header: a duration they report is a guess from a few time stamps.
HEADLESS = frozenset({"h264", "hevc", "m4v", "mpeg", "mpegts", "mpegvideo", "obu", "ogg"})
# Containers whose streams all report the length of the whole file.
SHARED_LENGTH = frozenset({"asf", "wtv"})
AVI_UNKNOWN = 1 << 30  # chunks; FFmpeg writes it where it cannot seek back to the header
AVI_CHUNK = 8  # header bytes of each frame in an AVI, also of a dropped one
LATE_START = 0.1  # s; video that starts this much later than its file is placed by an edit list
JUMP = 10.0  # s; like in FFmpeg, a longer step between packets is a discontinuity
# Containers whose streams FFmpeg finds only by decoding, beyond the reach of the limit on pixels.
LATE = frozenset({"flv", "mpeg", "mpegts", "wtv"})
# System errors that PyAV reports for an existing file; others mean that the content is not media.
UNREADABLE = frozenset((errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT))
# System errors of this process and not of the file that it opens.
SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
NOT_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
Matrix = tuple[int, int, int, int]
UPRIGHT: Matrix = (1, 0, 0, 1)


@dataclass(frozen=True)
class MediaInfo:
    """Facts about a media file.

    Attributes:
        path: the path.
        kind: `video`, `audio`, `images` (a folder) or `image`.
        format: FFmpeg's name of the container, `folder`, or the suffix of an image.
        duration: seconds, of the video stream if there is one; 0 for images.
        size: (height, width) of the upright frame; None without video.
        fps: average frames per second; None where unknown.
        frames: number of frames; None where unknown.
        video_codec, audio_codec: FFmpeg's names of the codecs.
        audio_rate: samples per second.
        audio_channels: number of channels.
    """

    path: str
    kind: str
    format: str
    duration: float
    size: tuple[int, int] | None = None
    fps: float | None = None
    frames: int | None = None
    video_codec: str | None = None
    audio_codec: str | None = None
    audio_rate: int | None = None
    audio_channels: int | None = None


def open_media(path: Path, limits: MediaLimits = DEFAULT_LIMITS) -> InputContainer:
    """Open a local file for demuxing.

    Only the `file` protocol and containers that hold their own data are allowed, so that a crafted file cannot make the
    process read other files or the network.

    Raises:
        InputError: not a readable media file.
    """
    with reading(path):
        check_file(path)
        check_sample_tables(path)
    cap_allocations()
    container = _open_restricted(path)
    if container is None:
        with reading(path):
            test_decode(path, limits)
        container = _open(path, min(limits.max_pixels, DIRECT_PIXELS), FORMATS, TRUSTED_CODECS)
    try:
        picked = [stream for stream in (pick_video(container), pick_audio(container)) if stream is not None]
        names = {codec_name(stream) for stream in picked if not is_trusted_codec(stream)}
        if not names:
            return container
        with reading(path):
            test_decode(path, limits, names)
    except InputError:
        container.close()
        raise
    container.close()
    return open_directly(path, limits)


def _open_restricted(path: Path) -> InputContainer | None:
    """Open a file whose probing by FFmpeg stays within the limits; None for formats where it would not."""
    try:
        return _open(path, DIRECT_PIXELS, ",".join(sorted(set(FORMATS.split(",")) - LATE)), TRUSTED_CODECS)
    except InputError as error:
        if isinstance(error.__cause__, ArgumentError):  # FFmpeg's error for a format that is not on the list
            return None
        raise


def open_directly(path: Path, limits: MediaLimits) -> InputContainer:
    """Open a file like `open_media` after its checks and test decoding."""
    cap_allocations()
    return _open(path, limits.max_pixels, FORMATS, None)


def _open(path: Path, max_pixels: int, formats: str, codecs: str | None) -> InputContainer:
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": formats,
        "fflags": "-genpts",  # PyAV's default takes the next packet's decoding time for a missing presentation time
        "max_pixels": str(max_pixels),
        "max_streams": str(MAX_TRACKS),
    }
    if codecs is not None:
        options["codec_whitelist"] = codecs
    try:  # the explicit protocol keeps a name like "concat:a|b" a file name
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
            _drop_channel_table(stream.codec_context)
    return container


def _drop_channel_table(context: AudioCodecContext) -> None:
    """Replace the channel order by the number of channels, in a decoder that is not open yet.

    FFmpeg describes an unnamed channel order (7.1 in a QuickTime file, stereo stored as right, left) by a table in
    memory. PyAV >= 17.1 copies the table's address into each `AudioLayout` and frees it with that object; FFmpeg frees
    it again with the decoder. Nothing may read `layout` or `channels` of the context before this call: that alone
    frees the table. The decoders in `TRUSTED_CODECS` make no such table themselves.
    """
    layout = context.layout  # from the next statement on, the only owner of the table, which it frees once
    if layout.nb_channels:
        context.layout = f"{layout.nb_channels} channels"  # PyAV overwrites the context's layout without freeing it


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
    """Raise InputError for a path that is missing, empty, unreadable or not a regular file."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"there is no file {path}; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(_unreadable(path, error)) from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a regular file; give a media file or a folder of images")
    if not os.access(path, os.R_OK):
        raise InputError(_unreadable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES))))
    if found.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); download or export it again")


def pick_video(container: InputContainer) -> VideoStream | None:
    """Return the first video stream; cover art and thumbnails do not count."""
    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & NOT_PICTURES:
            return stream
    return None


def pick_audio(container: InputContainer) -> AudioStream | None:
    """Return the audio track that a player would choose."""
    stream = container.streams.best("audio")
    return stream if isinstance(stream, AudioStream) and stream.codec_context is not None else None


def require_video(container: InputContainer, path: Path, limits: MediaLimits) -> VideoStream:
    """Return the video stream with its size checked and its decoder set up.

    Raises:
        InputError: no video stream, or frames over the limit.
    """
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
    # set before the decoder opens, so that a header with a wrong size is refused too
    context.options = {"max_pixels": str(pixel_limit(stream, limits))}
    # above this size, decoding several frames at once costs too much memory
    context.thread_type = "AUTO" if context.width * context.height <= DIRECT_PIXELS else "SLICE"
    context.thread_count = min(4, os.cpu_count() or 1)
    return stream


def codec_name(stream: AudioStream | VideoStream) -> str:
    """Return the name of the codec, not of its decoder (mp3, not mp3float)."""
    return str(stream.codec_context.codec.canonical_name)


def seconds(value: int | None, base: Fraction | None) -> float | None:
    """Convert a time stamp to seconds."""
    return None if value is None or base is None else float(value * base)


def stream_length(stream: AudioStream | VideoStream) -> float | None:
    """Return the header's length of a stream in seconds; None if unknown or more than the file's size allows."""
    container = cast(InputContainer, stream.container)
    if container.format.name == "avi":
        pictures = (stream.duration or 0) if isinstance(stream, VideoStream) else 0
        if stream.frames == AVI_UNKNOWN or pictures * AVI_CHUNK > container.size:
            return None
    return seconds(stream.duration, stream.time_base) or None


def video_duration(container: InputContainer, stream: VideoStream, start: float) -> tuple[float | None, bool]:
    """Return the header's length of the video in seconds, and whether it is that of this very stream.

    The length is None if the header's cannot be right. `start` is the time of the first frame.
    """
    name = container.format.name
    own = stream_length(stream)
    if name in HEADLESS or (name == "avi" and own is None):
        return None, False
    if own is not None and name not in SHARED_LENGTH:
        return own, start - (container.start_time or 0) / 1e6 < LATE_START  # else an mp4 may count an empty edit
    tag = _parse_clock(stream.metadata.get("DURATION", ""))  # Matroska: the end of this track
    if tag is not None and tag > start:
        return tag - start, True
    end = _promised_end(container, stream)
    return (None if end is None else max(end - start, 0.0) or None), len(container.streams) == 1


def _promised_end(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the header's end of the longest stream, on the file's clock."""
    if container.format.name in SHARED_LENGTH:  # the container's value includes the start of the video
        return stream_length(stream)
    if container.duration is None or container.duration <= 0:
        return None
    return (container.duration + (container.start_time or 0)) / 1e6


@dataclass(frozen=True)
class Scan:
    """Length of the video by its packets, and their longest step in time with its position; all in seconds."""

    duration: float
    step: float = 0.0
    place: float = 0.0


def scan_duration(path: Path, limits: MediaLimits, start: float, promised: float | None = None) -> Scan:
    """Read all packets for the length of the video, where the header lacks the stream's own.

    `promised`, the header's length, is kept for a truncated file: one with fewer packets than the header counts or,
    where it counts none, without a stream that reaches the promised end.
    """
    with open_media(path, limits) as container:
        stream = require_video(container, path, limits)
        tick = float(1 / (stream.average_rate or stream.guessed_rate or Fraction(25)))
        whole = _promised_end(container, stream)
        end, newest, last, count = start, float("-inf"), start, 0
        delay: float | None = None  # from a frame's decoding to its presentation
        step = place = 0.0
        watch = DecodeTimeBudget(path)
        try:
            for packet in watch.timed(container.demux()):
                count += packet.size > 0 and packet.stream_index == stream.index
                if not packet.size or packet.is_discard:  # removed by an edit list
                    continue
                order, time = seconds(packet.dts, packet.time_base), seconds(packet.pts, packet.time_base)
                length = seconds(packet.duration, packet.time_base)
                if packet.stream_index != stream.index:
                    last = max(last, (time or order or last) + (length or 0.0))
                    continue
                if delay is None and order is not None:
                    delay = max(0.0, start - order)
                if time is None and order is not None:
                    time = order + (delay or 0.0)
                if time is None or (order is not None and order <= newest):
                    end += tick  # no time stamps, or they start again: the decoder continues to count
                else:
                    if order is not None and newest > float("-inf") and order - newest > step:
                        step, place = order - newest, newest - start
                    end = max(end, time + (length or tick))
                newest = max(newest, order if order is not None else newest)
        except FFmpegError:
            pass  # the rest cannot be decoded either; the decoder reports it
        is_cut = count < stream.frames if stream.frames else whole is not None and is_short(max(last, end), whole)
    return Scan(promised if promised is not None and is_cut else end - start, step, place)


def is_short(got: float, promised: float) -> bool:
    """Return whether a stream ends so far before its promised end, in seconds, that a part is lost."""
    return promised - got > max(0.5, 0.02 * promised)


def display_matrix(frame: VideoFrame) -> Matrix:
    """Return the linear part (a, b, c, d) of a frame's display matrix: x' = a x + c y, y' = b x + d y.

    Call it for one frame per stream: reading side data creates a reference cycle, which delays freeing the frame.
    """
    data: Any = frame.side_data  # typed differently from release to release
    if "DISPLAYMATRIX" not in data:
        return UPRIGHT
    values = memoryview(bytes(data["DISPLAYMATRIX"])).cast("i")
    return values[0], values[1], values[3], values[4]


def is_turned(matrix: Matrix) -> bool:
    """Return whether a display matrix swaps height and width."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def upright_size(frame: VideoFrame, matrix: Matrix) -> tuple[int, int]:
    """Return (height, width) of a decoded frame after its display matrix."""
    return (frame.width, frame.height) if is_turned(matrix) else (frame.height, frame.width)


def _parse_clock(text: str) -> float | None:
    """Parse seconds from a text like 00:01:02.500000000."""
    try:
        hours, minutes, rest = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(rest)
    except ValueError:
        return None


def _unreadable(path: Path, error: Exception) -> str:
    if not isinstance(error, OSError):
        return f"{str(path)[:200]!r} cannot be read (its name has a NUL character); check the path"
    fix = "change its permissions" if error.errno in (errno.EACCES, errno.EPERM) else "check the path and its disk"
    return f"{str(path)[:200]} cannot be read ({error.strerror}); {fix}"


def _not_media(path: Path) -> str:
    return (
        f"{path} cannot be read as video or audio: it is not a media file, is truncated before its index, has more "
        f"than {MAX_TRACKS} tracks, or is a playlist, which is refused; give one complete local video or audio file"
    )
