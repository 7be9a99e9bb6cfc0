"""Writes the painted video: every frame of the source at its own time, with the source's own sound."""

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

log = logging.getLogger(__name__)
Paint = Callable[[float, ImageArray], ImageArray]
COPIED = frozenset({"aac", "mp3", "opus"})  # what browsers play inside mp4; anything else becomes AAC
LEAD = 0.1  # s of sound kept before the first picture: a decoder needs it to start, the file says not to play it


def write_overlay(
    path: str | Path,
    source: str | Path | Clip,
    paint: Paint,
    *,
    size_limit: int | None = 1280,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> None:
    """Writes an mp4 of the source with `paint(time, image) -> image` applied to every frame, and with its sound.

    A video file is decoded again and keeps its own frame times; its sound is copied without loss where mp4 allows.
    A clip without a video file (pictures, or made in memory) becomes a slideshow at its `fps`. A clip whose sound
    came from a separate file keeps that sound. `paint` gets upright RGB pictures of the source's own size and the
    time in s from the first one; it may return the same array, keeps the size, and is asked again from the start if
    the sound of a damaged file turns out not to be copyable. `size_limit` bounds the long side of what is written.
    The file appears whole under its name or not at all.
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
        if isinstance(error, OSError):  # a full disk does not go away
            raise
        log.warning("the sound of %s cannot be copied (%s); encoding it anew", source, error.strerror)
        run(copy=False)


class OverlayTranscoder:
    """One pass over a video file: its pictures are painted and encoded, its sound packets go along in file order."""

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
        self._waiting: list[Packet[Any]] = []  # sound that comes before the first picture is decoded
        self._copy: CopiedAudio | None = None
        self._encode: EncodedAudio | None = None

    def run(self) -> None:
        """Writes everything; `InputError` if not one picture can be decoded."""
        streams = [s for s in (self._video, self._audio) if s is not None]
        for packet in read_packets(self._given, streams, self._decoder):
            if packet.stream_index == self._video.index:
                for shown in self._decoder.decode(packet):
                    self._picture(shown)
            elif self._track is None:
                self._waiting.append(packet)
            elif self._copy:
                self._copy.add(packet)
        if self._track is None:
            raise InputError(f"no picture of {self._path} can be decoded; it is damaged or empty")
        self._track.finish()
        if self._encode:
            self._encode.finish()

    def _picture(self, shown: TimedFrame) -> None:
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
    """Copies sound packets as they are, moved so that time 0 is the first picture."""

    def __init__(self, container: OutputContainer, source: AudioStream, start: float) -> None:
        self._container = container
        self._stream = container.add_stream_from_template(source)
        self._shift = round(start / source.time_base) if source.time_base else 0
        self._earliest = -round(LEAD / source.time_base) if source.time_base else 0
        self._last = float("-inf")

    def add(self, packet: Packet[Any]) -> None:
        """Copies one packet; those that end well before the first picture are left out."""
        if packet.dts is None or packet.pts is None or not packet.size:
            return
        packet.pts -= self._shift
        packet.dts -= self._shift
        if packet.pts + (packet.duration or 0) < self._earliest or packet.dts <= self._last:
            return  # before the first picture, or out of order in a damaged file
        self._last = packet.dts
        packet.stream = self._stream
        self._container.mux(packet)


def can_copy(stream: AudioStream) -> bool:
    """Whether a sound track may go into an mp4 unchanged (raw ADTS has no header that mp4 could keep)."""
    name = codec_name(stream)
    return name in COPIED and (name == "mp3" or bool(stream.codec_context.extradata))


def recode(container: OutputContainer, path: Path, start: float, limits: MediaLimits) -> EncodedAudio | None:
    """The sound of a file that has some as AAC, in stereo if it is stereo; None if it cannot be decoded."""
    with open_media(path, limits) as given:
        stream = pick_audio(given)
        assert stream is not None, "the file has sound"
        decoder = AudioDecoder(stream, path, limits, start, channels=2 if stream.channels == 2 else 1)
        decoder.run(given)
        return encode_audio(container, decoder.samples(), decoder.rate) if decoder.spool.length else None
