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
    MAX_TRACKS,
    OPEN_SECONDS,
    DecodeTimeBudget,
    MediaLimits,
    cap_allocations,
    check_sample_tables,
)
from openavs.media.sandbox import DIRECT_PIXELS, MODEST, is_trusted_codec, pixel_limit, test_decode

# Containers that hold media themselves. Playlists and scripts (hls, dash, concat, image sequences) stay out, because
# they make the library open other files or addresses.
FORMATS = (
    "3g2,3gp,aac,ac3,aiff,amr,ape,apng,asf,au,av1,avi,caf,dv,eac3,flac,flv,gif,h264,hevc,ivf,m4a,m4v,matroska,mj2,mov,"
    "mp3,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,opus,rm,tta,w64,wav,webm,wtv,wv,yuv4mpegpipe"
)
# Containers without a header: a duration they report is a guess from a few time stamps.
HEADLESS = frozenset({"h264", "hevc", "m4v", "mpeg", "mpegts", "mpegvideo", "obu", "ogg"})
# Containers whose streams all report the length of the whole file.
SHARED_LENGTH = frozenset({"asf", "wtv"})
AVI_UNKNOWN = 1 << 30  # chunks; FFmpeg writes it where it cannot come back to the header
AVI_CHUNK = 8  # bytes of the header that each picture of an AVI has, a dropped one too
LATE_START = 0.1  # s; pictures that begin so much later than their file are placed by an edit list
JUMP = 10.0  # s; FFmpeg, too, takes a longer step between packets for a discontinuity
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


def open_media(path: Path, limits: MediaLimits = DEFAULT_LIMITS) -> InputContainer:
    """Opens a local file for demuxing; `InputError` for whatever is not a media file.

    Only the `file` protocol and containers that hold their own data are allowed, so a crafted file cannot make the
    process read other files or the network.
    """
    with reading(path):
        check_file(path)
        check_sample_tables(path)
    cap_allocations()
    container = _opened_modestly(path)
    if container is None:
        with reading(path):
            test_decode(path, limits)
        container = _opened(path, min(limits.max_pixels, DIRECT_PIXELS), FORMATS, MODEST)
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


def _opened_modestly(path: Path) -> InputContainer | None:
    """Opens a file while FFmpeg, which decodes to see what is in it, obeys our limits; None where it would not."""
    try:
        return _opened(path, DIRECT_PIXELS, ",".join(sorted(set(FORMATS.split(",")) - LATE)), MODEST)
    except InputError as problem:
        if isinstance(problem.__cause__, ArgumentError):  # what FFmpeg says of a format that is not on the list
            return None
        raise


def open_directly(path: Path, limits: MediaLimits) -> InputContainer:
    """As `open_media`, of a file that was checked and tried."""
    cap_allocations()
    return _opened(path, limits.max_pixels, FORMATS, None)


def _opened(path: Path, max_pixels: int, formats: str, codecs: str | None) -> InputContainer:
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": formats,
        "fflags": "-genpts",  # PyAV's default takes the next packet's decoding time for a missing presentation time
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


def require_video(container: InputContainer, path: Path, limits: MediaLimits) -> VideoStream:
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


def stream_length(stream: AudioStream | VideoStream) -> float | None:
    """Length in seconds that the header promises for a stream; None if unknown or more than the file's bytes hold."""
    container = cast(InputContainer, stream.container)
    if container.format.name == "avi":
        pictures = (stream.duration or 0) if isinstance(stream, VideoStream) else 0
        if stream.frames == AVI_UNKNOWN or pictures * AVI_CHUNK > container.size:
            return None
    return seconds(stream.duration, stream.time_base) or None


def video_duration(container: InputContainer, stream: VideoStream, start: float) -> tuple[float | None, bool]:
    """Length of the video in seconds as the header promises it, and whether that is the length of this very stream.

    None where the header gives no length that can be right; `start` is the first picture's time.
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
    """When the longest stream ends, on the file's clock, as the header promises it."""
    if container.format.name in SHARED_LENGTH:  # the container's adds the start of the pictures
        return stream_length(stream)
    if container.duration is None or container.duration <= 0:
        return None
    return (container.duration + (container.start_time or 0)) / 1e6


@dataclass(frozen=True)
class Scan:
    """Length of the video in seconds as its packets have it, and their longest step ahead in time with its place."""

    duration: float
    step: float = 0.0
    place: float = 0.0


def scan_duration(path: Path, limits: MediaLimits, start: float, promised: float | None = None) -> Scan:
    """Reads all packets for the length of the video, where the header does not give the stream's own.

    `promised` is the length from the header. It stays the length of a file that is cut short: one with fewer packets
    than the header counts or, where it counts none, without a stream that reaches the promised end.
    """
    with open_media(path, limits) as container:
        stream = require_video(container, path, limits)
        tick = float(1 / (stream.average_rate or stream.guessed_rate or Fraction(25)))
        whole = _promised_end(container, stream)
        end, newest, last, count = start, float("-inf"), start, 0
        delay: float | None = None  # from a picture's decoding to its showing
        step = place = 0.0
        watch = DecodeTimeBudget(path)
        try:
            for packet in watch.timed(container.demux()):
                count += packet.size > 0 and packet.stream_index == stream.index
                if not packet.size or packet.is_discard:  # an edit list leaves it out
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
                    end += tick  # no time stamps, or they begin anew: the decoder counts on, too
                else:
                    if order is not None and newest > float("-inf") and order - newest > step:
                        step, place = order - newest, newest - start
                    end = max(end, time + (length or tick))
                newest = max(newest, order if order is not None else newest)
        except FFmpegError:
            pass  # what lies behind the damage cannot be decoded either; the decoder reports it
        is_cut = count < stream.frames if stream.frames else whole is not None and is_short(max(last, end), whole)
    return Scan(promised if promised is not None and is_cut else end - start, step, place)


def is_short(got: float, promised: float) -> bool:
    """Whether something ends so much before its promised end, in seconds, that a part of it is lost."""
    return promised - got > max(0.5, 0.02 * promised)


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
