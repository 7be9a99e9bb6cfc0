"""Re-encoding of a video with painted frames at their own times and the source's audio."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from openavs.errors import InputError
from openavs.media.audio import AudioDecoder
from openavs.media.clip import open_clip
from openavs.media.encode import EncodedAudio, VideoTrack, encode_audio, open_mp4, write_timed
from openavs.media.images import is_image
from openavs.media.limits import DEFAULT_LIMITS, MediaLimits
from openavs.media.probe import (
    Matrix,
    codec_name,
    display_matrix,
    open_media,
    pick_audio,
    require_video,
    upright_size,
)
from openavs.media.video import TimedFrame, VideoDecoder, VideoFrames, read_packets, to_image
from openavs.structures.types import Clip, ImageArray, Waveform
from openavs.utils.fs import atomic_replace

logger = logging.getLogger(__name__)
Paint = Callable[[float, ImageArray], ImageArray]
COPIED = frozenset({"aac", "mp3", "opus"})  # played by browsers inside mp4; other codecs become AAC
LEAD = 0.1  # s of audio kept before the first frame: decoders need it to start; the file marks it as not played


def write_overlay(
    path: str | Path,
    source: str | Path | Clip,
    paint: Paint,
    *,
    size_limit: int | None = 1280,
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
        limits: limits of the decoder.

    Raises:
        InputError: the source cannot be decoded.
    """
    if not isinstance(source, Clip):
        plain = Path(source)
        if not os.path.isdir(plain) and not is_image(plain):
            _repaint(Path(path), plain, paint, None, size_limit, limits)
            return
        source = open_clip(plain, limits=limits)
    if isinstance(source.frames, VideoFrames):
        video = source.frames
        other = None if video.own_sound else source.audio
        _repaint(Path(path), video.path, paint, other, size_limit, video.limits)
    else:
        write_timed(Path(path), _painted(source, paint), source.fps, source.audio, size_limit)


def _painted(clip: Clip, paint: Paint) -> Iterator[tuple[float, ImageArray]]:
    for frame in clip.frames(None):
        yield frame.index / clip.fps, paint(frame.time, frame.image)


def _repaint(
    path: Path, source: Path, paint: Paint, other: Waveform | None, size_limit: int | None, limits: MediaLimits
) -> None:
    def run(copy: bool) -> None:
        with open_media(source, limits) as given, atomic_replace(path) as temporary, open_mp4(temporary) as container:
            OverlayTranscoder(given, container, source, paint, other, copy, size_limit, limits).run()

    try:
        run(copy=True)
    except FFmpegError as error:
        if isinstance(error, OSError):  # such as a full disk
            raise
        logger.warning("the sound of %s cannot be copied (%s); it is encoded", source, error.strerror)
        run(copy=False)


class OverlayTranscoder:
    """One pass over a video file: frames are painted and encoded, audio packets are copied in file order."""

    def __init__(
        self,
        given: InputContainer,
        container: OutputContainer,
        path: Path,
        paint: Paint,
        other: Waveform | None,
        copy: bool,
        size_limit: int | None,
        limits: MediaLimits,
    ) -> None:
        self._given, self._out, self._path, self._paint = given, container, path, paint
        self._other, self._size_limit, self._limits = other, size_limit, limits
        self._video = require_video(given, path, limits)
        self._decoder = VideoDecoder(self._video, path, limits)
        self._audio = pick_audio(given) if other is None else None
        self._may_copy = copy and self._audio is not None and can_copy(self._audio)
        self._track: VideoTrack | None = None
        self._size: tuple[int, int] = (0, 0)
        self._matrix: Matrix = (1, 0, 0, 1)
        self._start = 0.0
        self._waiting: list[Packet[Any]] = []  # audio before the first decoded frame
        self._copy: CopiedAudio | None = None
        self._encode: EncodedAudio | None = None

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
            elif self._track is None:
                self._waiting.append(packet)
            elif self._copy:
                self._copy.add(packet)
        if self._track is None:
            raise InputError(f"no frame of {self._path} can be decoded; it is damaged or empty")
        self._track.finish()
        if self._encode:
            self._encode.finish()

    def _add_frame(self, shown: TimedFrame) -> None:
        if self._track is None:
            self._begin(shown)
        assert self._track is not None
        time = shown.start - self._start
        self._track.add(
            self._paint(time, to_image(shown.frame, self._size, self._matrix)), time, shown.end - shown.start
        )
        if self._encode:
            self._encode.until(time + 0.5)

    def _begin(self, first: TimedFrame) -> None:
        self._start, self._matrix = first.start, display_matrix(first.frame)
        self._size = upright_size(first.frame, self._matrix)
        self._track = VideoTrack(self._out, self._size, 1 / self._decoder.tick, self._size_limit)
        if self._other is not None:
            self._encode = encode_audio(self._out, self._other.samples[:, None], self._other.rate)
        elif self._audio is not None and self._may_copy:
            self._copy = CopiedAudio(self._out, self._audio, self._start)
            for packet in self._waiting:
                self._copy.add(packet)
        elif self._audio is not None:
            self._encode = recode(self._out, self._path, self._start, self._limits)
        self._waiting.clear()


class CopiedAudio:
    """Copies audio packets unchanged, shifted so that time 0 is the first frame."""

    def __init__(self, container: OutputContainer, source: AudioStream, start: float) -> None:
        self._container = container
        self._stream = container.add_stream_from_template(source)
        self._shift = round(start / source.time_base) if source.time_base else 0
        self._earliest = -round(LEAD / source.time_base) if source.time_base else 0
        self._last = float("-inf")

    def add(self, packet: Packet[Any]) -> None:
        """Copy one packet; packets that end well before the first frame are dropped."""
        if packet.dts is None or packet.pts is None or not packet.size:
            return
        packet.pts -= self._shift
        packet.dts -= self._shift
        if packet.pts + (packet.duration or 0) < self._earliest or packet.dts <= self._last:
            return  # before the first frame, or out of order in a damaged file
        self._last = packet.dts
        packet.stream = self._stream
        self._container.mux(packet)


def can_copy(stream: AudioStream) -> bool:
    """Return whether an audio track can be copied into an mp4 (raw ADTS lacks the header that mp4 needs)."""
    name = codec_name(stream)
    return name in COPIED and (name == "mp3" or bool(stream.codec_context.extradata))


def recode(container: OutputContainer, path: Path, start: float, limits: MediaLimits) -> EncodedAudio | None:
    """Return an AAC encoder of a file's audio, in stereo if it is stereo; None if it cannot be decoded."""
    with open_media(path, limits) as given:
        stream = pick_audio(given)
        assert stream is not None, "the file has sound"
        decoder = AudioDecoder(stream, path, limits, start, channels=2 if stream.channels == 2 else 1)
        decoder.run(given)
        return encode_audio(container, decoder.samples(), decoder.rate) if decoder.buffer.length else None
