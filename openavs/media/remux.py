"""Videos for players: copied streams, or frames encoded at their own times, painted or not, with the source's audio."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from openavs.errors import InputError
from openavs.media.audio import Samples
from openavs.media.clip import open_clip
from openavs.media.encode import (
    AudioSource,
    EncodedAudio,
    VideoTrack,
    encode_audio,
    file_audio,
    open_mp4,
    write_timed,
)
from openavs.media.images import is_image
from openavs.media.limits import DEFAULT_LIMITS, MediaLimits
from openavs.media.probe import (
    UPRIGHT,
    Matrix,
    codec_name,
    display_matrix,
    open_media,
    pick_audio,
    require_video,
    seconds,
    upright_size,
)
from openavs.media.video import TimedFrame, VideoDecoder, VideoFrames, read_packets, to_image
from openavs.structures.types import Clip, ImageArray, Waveform
from openavs.utils.fs import atomic_replace

logger = logging.getLogger(__name__)
Paint = Callable[[float, ImageArray], ImageArray]
COPIED = frozenset({"aac", "mp3", "opus"})  # played by browsers inside mp4; other codecs become AAC
PLAYED = frozenset({"h264", "vp9", "av1"})  # by browsers inside mp4, in 8 bits and 4:2:0
PLAYER_SIDE = 960  # pixels of the longest side of an encoded player's video
COPY_SIDE, COPY_BITS = 1920, 16e6  # the longest side, and bits per second, up to which streams are copied
LEAD = 0.1  # s of audio kept before the first frame: decoders need it to start; the file marks it as not played


def write_overlay(
    path: str | Path,
    source: str | Path | Clip,
    paint: Paint,
    *,
    size_limit: int | None = 1280,
    plain: str | Path | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> None:
    """Write an mp4 of the source with `paint` applied to every frame, and with its audio.

    A video file is decoded again and keeps its frame times; its audio is copied without loss where mp4 allows it. A
    clip without a video file (images, or made in memory) becomes a slide show at its `fps`. A clip with separate audio
    keeps that audio. The file is written atomically.

    Args:
        path: the file to write.
        source: a video, image, folder of images, or clip.
        paint: `paint(time, image) -> image`. It gets upright RGB images of the source's size and the time in seconds
            from the first frame, and returns an image of the same size. If the audio of a damaged file cannot be
            copied, it is called again for all frames.
        size_limit: largest length of the long side of the output; None for no limit.
        plain: also write the frames as they are to this file, for players, in the same pass.
        limits: limits of the decoder.

    Raises:
        InputError: the source cannot be decoded.
    """
    files = [_File(Path(path), paint, size_limit)]
    if plain is not None:
        files.append(_File(Path(plain), _as_it_is, PLAYER_SIDE))
    if not isinstance(source, Clip):
        if not os.path.isdir(source) and not is_image(Path(source)):
            _transcode(files, Path(source), None, limits)
            return
        source = open_clip(source, limits=limits)
    if isinstance(source.frames, VideoFrames):
        video = source.frames
        _transcode(files, video.path, None if video.own_sound else source.audio, video.limits)
    else:
        for file in files:
            write_timed(file.path, _painted(source, file.paint), source.fps, source.audio, file.size_limit)


def write_player_video(path: Path, clip: Clip) -> None:
    """Write a clip as an mp4 that browsers play, as it is: by copying its streams, or else in a small size.

    Raises:
        InputError: the source cannot be decoded.
    """
    if not copy_streams(path, clip):
        write_overlay(path, clip, _as_it_is, size_limit=PLAYER_SIDE)


def copy_streams(path: Path, clip: Clip) -> bool:
    """Copy a clip's video and audio into an mp4 if browsers play them; return whether the file was written.

    Streams are encoded instead if they are large, mirrored, start without a key frame, or have oblong pixels.
    """
    video = clip.frames
    if not isinstance(video, VideoFrames) or not video.own_sound or not clip.duration:
        return False
    rate = 8 * video.path.stat().st_size / clip.duration
    a, b, c, d = video.matrix
    if max(video.size) > COPY_SIDE or rate > COPY_BITS or a * d - b * c < 0:
        return False
    with open_media(video.path, video.limits) as given:
        stream, audio = require_video(given, video.path, video.limits), pick_audio(given)
        if not _is_played(stream) or not (audio is None or can_copy(audio)):
            return False
        decoder = VideoDecoder(stream, video.path, video.limits)
        packets = read_packets(given, [s for s in (stream, audio) if s is not None], decoder)
        try:
            with atomic_replace(path) as temporary, open_mp4(temporary) as container:
                _copy_packets(packets, container, stream, audio, video.start)
                if decoder.damaged:
                    raise _NotCopied
        except (FFmpegError, _NotCopied) as error:
            if isinstance(error, OSError):  # such as a full disk
                raise
            return False
    return True


class _NotCopied(Exception):
    """The streams of a file have to be encoded."""


def _is_played(stream: VideoStream) -> bool:
    """Return whether browsers play a video stream as it is."""
    context, shape = stream.codec_context, stream.sample_aspect_ratio
    return (
        stream.container.format.name in ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
        and codec_name(stream) in PLAYED
        and context.pix_fmt in ("yuv420p", "yuvj420p")
        and (not shape or shape == 1)
        and (codec_name(stream) != "h264" or bool(context.extradata))
    )


def _copy_packets(
    packets: Iterator[Packet[Any]],
    container: OutputContainer,
    video: VideoStream,
    audio: AudioStream | None,
    start: float,
) -> None:
    """Copy packets so that time 0 is the first frame, at `start` in s; raises _NotCopied for an unusual stream."""
    pictures = _CopiedStream(container, video, start)
    sound = None if audio is None else _CopiedStream(container, audio, start)
    began = False
    for packet in packets:
        if packet.stream_index != video.index:
            assert sound is not None, "only these streams are read"
            sound.add(packet)
            continue
        if packet.size and (packet.pts is None or packet.dts is None or packet.is_corrupt):
            raise _NotCopied
        if packet.size and not began:
            began = True
            first = seconds(packet.pts, packet.time_base)
            if not packet.is_keyframe or first is None or abs(first - start) > 1e-3:
                raise _NotCopied  # the first frames are not decodable, or not shown
        pictures.add(packet)


@dataclass(frozen=True)
class _File:
    """A video to write."""

    path: Path
    paint: Paint
    size_limit: int | None


def _as_it_is(time: float, image: ImageArray) -> ImageArray:
    return image


def _painted(clip: Clip, paint: Paint) -> Iterator[tuple[float, ImageArray]]:
    for frame in clip.frames(None):
        yield frame.index / clip.fps, paint(frame.time, frame.image)


def _transcode(files: Sequence[_File], source: Path, other: Waveform | None, limits: MediaLimits) -> None:
    def run(copy: bool) -> None:
        with ExitStack() as stack:
            given = stack.enter_context(open_media(source, limits))
            outputs = []
            for file in files:
                temporary = stack.enter_context(atomic_replace(file.path))
                outputs.append(_Output(stack.enter_context(open_mp4(temporary)), file))
            Transcoder(given, outputs, source, other, copy, limits).run()

    try:
        run(copy=True)
    except FFmpegError as error:
        if isinstance(error, OSError):  # such as a full disk
            raise
        logger.warning("the sound of %s cannot be copied (%s); it is encoded", source, error.strerror)
        run(copy=False)


class _Output:
    """A file that is written: its encoder of frames, and its copied or encoded audio."""

    def __init__(self, container: OutputContainer, file: _File) -> None:
        self._container, self._file = container, file
        self._track: VideoTrack | None = None
        self._copied: _CopiedStream | None = None
        self._encoded: EncodedAudio | None = None

    def begin(self, size: tuple[int, int], rate: float) -> None:
        """Add the video stream for images of (height, width)."""
        self._track = VideoTrack(self._container, size, rate, self._file.size_limit)

    def encode_audio(self, samples: Samples, rate: int) -> None:
        """Add an audio stream of samples `[N, channels]`."""
        self._encoded = encode_audio(self._container, samples, rate)

    def copy_audio(self, stream: AudioStream, start: float) -> None:
        """Add a copy of an audio stream, of which `start` in s becomes time 0."""
        self._copied = _CopiedStream(self._container, stream, start)

    def add_packet(self, packet: Packet[Any]) -> None:
        """Add a packet of copied audio."""
        if self._copied:
            self._copied.add(packet)

    def add_frame(self, image: ImageArray, time: float, duration: float) -> None:
        """Paint and encode a frame."""
        assert self._track is not None, "the output has begun"
        self._track.add(self._file.paint(time, image), time, duration)
        if self._encoded:
            self._encoded.until(time + 0.5)

    def finish(self) -> None:
        """Flush the encoders."""
        assert self._track is not None, "the output has begun"
        self._track.finish()
        if self._encoded:
            self._encoded.finish()


class Transcoder:
    """One pass over a video file: frames are painted and encoded, audio packets are copied in file order."""

    def __init__(
        self,
        given: InputContainer,
        outputs: Sequence[_Output],
        path: Path,
        other: Waveform | None,
        copy: bool,
        limits: MediaLimits,
    ) -> None:
        self._given, self._outputs, self._path = given, outputs, path
        self._other, self._limits = other, limits
        self._video = require_video(given, path, limits)
        self._decoder = VideoDecoder(self._video, path, limits)
        self._audio = pick_audio(given) if other is None else None
        self._may_copy = copy and self._audio is not None and can_copy(self._audio)
        self._began = False
        self._size: tuple[int, int] = (0, 0)
        self._matrix: Matrix = UPRIGHT
        self._start = 0.0
        self._waiting: list[Packet[Any]] = []  # audio before the first decoded frame

    def run(self) -> None:
        """Transcode the whole file.

        Raises:
            InputError: no frame can be decoded.
        """
        streams = [s for s in (self._video, self._audio) if s is not None]
        for packet in read_packets(self._given, streams, self._decoder):
            if packet.stream_index == self._video.index:
                for shown in self._decoder.decode(packet):
                    self._add_frame(shown)
            elif self._began:
                self._add_packet(packet)
            else:
                self._waiting.append(packet)
        if not self._began:
            raise InputError(f"no frame of {self._path} can be decoded; it is damaged or empty")
        for output in self._outputs:
            output.finish()

    def _add_packet(self, packet: Packet[Any]) -> None:
        for output in self._outputs:
            output.add_packet(packet)

    def _add_frame(self, shown: TimedFrame) -> None:
        if not self._began:
            self._begin(shown)
        time = shown.start - self._start
        image = to_image(shown.frame, self._size, self._matrix)
        for output in self._outputs:
            output.add_frame(image, time, shown.end - shown.start)

    def _begin(self, first: TimedFrame) -> None:
        self._began, self._start, self._matrix = True, first.start, display_matrix(first.frame)
        self._size = upright_size(first.frame, self._matrix)
        for output in self._outputs:
            output.begin(self._size, 1 / self._decoder.tick)
        if self._other is not None:
            sound: AudioSource | None = AudioSource(self._other.samples[:, None], self._other.rate)
        else:
            sound = None if self._audio is None or self._may_copy else file_audio(self._path, self._start, self._limits)
        for output in self._outputs:
            if sound is not None:
                output.encode_audio(sound.samples, sound.rate)
            elif self._audio is not None and self._may_copy:
                output.copy_audio(self._audio, self._start)
        for packet in self._waiting:
            self._add_packet(packet)
        self._waiting.clear()


class _CopiedStream:
    """Copies packets unchanged, shifted so that time 0 is the first frame."""

    def __init__(self, container: OutputContainer, source: AudioStream | VideoStream, start: float) -> None:
        self._container = container
        self._stream = container.add_stream_from_template(source)
        self._shift = round(start / source.time_base) if source.time_base else 0
        self._earliest = -round(LEAD / source.time_base) if source.time_base else 0
        self._last = float("-inf")

    def add(self, packet: Packet[Any]) -> None:
        """Copy one packet, and leave it as it was; packets that end well before the first frame are dropped."""
        given = packet.stream, packet.time_base, packet.pts, packet.dts, packet.duration
        if packet.dts is None or packet.pts is None or not packet.size:
            return
        pts, dts = packet.pts - self._shift, packet.dts - self._shift
        if pts + (packet.duration or 0) < self._earliest or dts <= self._last:
            return  # before the first frame, or out of order in a damaged file
        self._last = dts
        packet.pts, packet.dts, packet.stream = pts, dts, self._stream
        self._container.mux(packet)
        packet.stream, packet.time_base, packet.pts, packet.dts, packet.duration = given


def can_copy(stream: AudioStream) -> bool:
    """Return whether an audio track can be copied into an mp4 (raw ADTS lacks the header that mp4 needs)."""
    name = codec_name(stream)
    return name in COPIED and (name == "mp3" or bool(stream.codec_context.extradata))
