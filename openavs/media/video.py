"""Decodes a video file straight through and converts to RGB only the frames that are wanted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from openavs.media.limits import DEFAULT_LIMITS, DecodeTimeBudget, MediaLimits
from openavs.media.probe import Matrix, is_turned, open_media, require_video, seconds
from openavs.structures.types import Frame, ImageArray
from openavs.utils.text import pluralize

log = logging.getLogger(__name__)
ROUNDING = 1e-6  # s; time stamps are fractions, planned times are floats


@dataclass
class TimedFrame:
    """A decoded picture and the time it is on show, in seconds of the file's own clock."""

    frame: VideoFrame
    start: float
    end: float


@dataclass
class VideoDecoder:
    """Turns packets into pictures with rising times, stepping over what is damaged and counting it.

    A picture without a presentation time has the decoding time of the packet that completed it. AVI has only the order
    of decoding and begins at 0, so there the first picture is moved to the time of its own packet, the others with it.
    """

    stream: VideoStream
    path: Path
    limits: MediaLimits = DEFAULT_LIMITS
    damaged: int = 0
    _entry: float | None = field(default=None, init=False)
    _delay: float = field(default=0.0, init=False)
    _first: float | None = field(default=None, init=False)
    _last: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.watch = DecodeTimeBudget(self.path)
        rate = self.stream.average_rate or self.stream.guessed_rate
        self.tick = float(1 / rate) if rate else 0.04
        self._step = self.tick  # to a picture without a time stamp
        self._is_timed = False  # whether the last picture had one
        self._is_avi = self.stream.container.format.name == "avi"

    def decode(self, packet: Packet[VideoStream]) -> Iterator[TimedFrame]:
        """The pictures that one packet completes (several when flushing)."""
        if self._first is None and packet.size and (packet.is_keyframe or self._entry is None):
            self._entry = seconds(packet.dts, packet.time_base)
        try:
            with self.watch:
                frames = self.stream.decode(packet)
        except FFmpegError:
            self.damaged += 1
            return
        untimed = sum(stamp(frame) is None for frame in frames)
        if untimed and not packet.size and self._is_timed:  # the pictures that were delayed share the time of the delay
            self._step = self._delay / untimed or self.tick
        yield from map(self._stamp, frames)

    def _stamp(self, frame: VideoFrame) -> TimedFrame:
        time = seconds(stamp(frame), frame.time_base or self.stream.time_base)
        self._is_timed = time is not None
        if self._last is None and time is not None and self._entry is not None:
            self._delay = max(0.0, time - self._entry)
        if time is not None and self._is_avi:
            time -= self._delay
        if self._last is not None and (time is None or time <= self._last or self._is_far(time)):
            # raw streams have no time stamps, joined ones fall back, damaged ones jump
            time = self._last + (self._step if time is None else self.tick)
        self._last = time or 0.0
        self._first = self._last if self._first is None else self._first
        length = seconds(frame.duration, frame.time_base) or self.tick
        return TimedFrame(frame, self._last, self._last + min(length, self.limits.max_duration))

    def _is_far(self, time: float) -> bool:
        """Whether a time lies outside of any clip that begins where this one does."""
        return time - (self._first or 0.0) > self.limits.max_duration


def stamp(frame: VideoFrame) -> int | None:
    """A picture's presentation time or, where the file has none, the decoding time of the packet that completed it."""
    return frame.dts if frame.pts is None else frame.pts


def read_packets(
    container: InputContainer, streams: Sequence[VideoStream | AudioStream], decoder: VideoDecoder
) -> Iterator[Packet[Any]]:
    """The packets of some streams in file order; ends where the file does, however it ends."""
    try:
        yield from decoder.watch.timed(container.demux(list(streams)))
    except FFmpegError:
        decoder.damaged += 1  # the container itself is broken here: nothing more can be read


def decode_video(container: InputContainer, stream: VideoStream, decoder: VideoDecoder) -> Iterator[TimedFrame]:
    """All pictures of a stream in order."""
    for packet in read_packets(container, [stream], decoder):
        yield from decoder.decode(packet)


@dataclass(frozen=True)
class VideoFrames:
    """The `FrameSource` of a video file: planned frame i is the picture on show at `times[i]`.

    `start` is the first picture's time on the file's clock; `size` the upright (height, width) that every picture is
    given, also after a change within the stream; `matrix` turns decoded ones upright. `own_sound` is False where the
    clip's sound comes from elsewhere.
    """

    path: Path
    start: float
    size: tuple[int, int]
    matrix: Matrix
    times: tuple[float, ...]
    fps: float
    own_sound: bool = True
    limits: MediaLimits = DEFAULT_LIMITS

    def __call__(self, wanted: frozenset[int] | None = None) -> Iterator[Frame]:
        """Yields wanted frames in order of time, holding one RGB picture at most."""
        queue = [i for i in range(len(self.times)) if wanted is None or i in wanted]
        if not queue:
            return
        done = 0
        with open_media(self.path, self.limits) as container:
            stream = require_video(container, self.path, self.limits)
            decoder = VideoDecoder(stream, self.path, self.limits)
            for count, frame in enumerate(self._sample(queue, decode_video(container, stream, decoder)), 1):
                done = count
                yield frame
                del frame
        self._report(len(queue) - done, decoder.damaged)

    def _sample(self, queue: list[int], pictures: Iterator[TimedFrame]) -> Iterator[Frame]:
        shown: TimedFrame | None = None
        image: ImageArray | None = None
        position = 0
        for picture in pictures:
            while self.times[queue[position]] + self.start < picture.start - ROUNDING:
                shown = shown or picture  # before the first picture that could be decoded
                image = to_image(shown.frame, self.size, self.matrix) if image is None else image
                yield Frame(queue[position], self.times[queue[position]], image)
                position += 1
                if position == len(queue):
                    return
            shown, image = picture, None
        # The last picture also stands for the rest of the interval in which it ends.
        while shown and position < len(queue) and self._begin(queue[position]) < shown.end - ROUNDING:
            image = to_image(shown.frame, self.size, self.matrix) if image is None else image
            yield Frame(queue[position], self.times[queue[position]], image)
            position += 1

    def _begin(self, index: int) -> float:
        """When the interval of a planned frame begins, on the file's clock."""
        return self.start + self.times[index] - 0.5 / self.fps

    def _report(self, missing: int, damaged: int) -> None:
        if missing:
            log.warning("%s ends early: %d planned frames are not there (truncated or damaged)", self.path, missing)
        elif damaged:
            log.warning("%s is damaged: passed over %s", self.path, pluralize(damaged, "packet"))


def to_image(frame: VideoFrame, size: tuple[int, int], matrix: Matrix) -> ImageArray:
    """An upright RGB picture uint8 `[H, W, 3]` of the given size, from a decoded frame and its display matrix."""
    height, width = size[::-1] if is_turned(matrix) else size
    rgb = frame.to_ndarray(format="rgb24", width=width, height=height, src_color_range=frame.color_range)
    return upright(np.asarray(rgb, dtype=np.uint8), matrix)


def upright(image: ImageArray, matrix: Matrix) -> ImageArray:
    """Applies a display matrix: any of the four quarter turns, mirrored or not (others are left as they are)."""
    a, b, c, d = matrix
    if is_turned(matrix):
        image, flip_x, flip_y = image.transpose(1, 0, 2), c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
