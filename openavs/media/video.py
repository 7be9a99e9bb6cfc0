"""Sequential video decoding; only the requested frames are converted to RGB."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from openavs.structures.masks import small_size
from openavs.structures.types import Frame, ImageArray
from openavs.utils.text import pluralize

logger = logging.getLogger(__name__)
ROUNDING = 1e-6  # s; time stamps are fractions, planned times are floats


@dataclass
class TimedFrame:
    """A decoded frame and its presentation interval, in seconds of the file's clock."""

    frame: VideoFrame
    start: float
    end: float


@dataclass
class VideoDecoder:
    """Decodes packets to frames with increasing times; damaged packets are skipped and counted.

    A frame without a presentation time gets the decoding time of the packet that completed it. AVI has only decoding
    order and starts at 0; its frames are shifted so that the first one is at the time of its own packet.
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
        self._step = self.tick  # to a frame without a time stamp
        self._is_timed = False  # whether the last frame had one
        self._is_avi = self.stream.container.format.name == "avi"

    def decode(self, packet: Packet[VideoStream]) -> Iterator[TimedFrame]:
        """Yield the frames that one packet completes (several when flushing)."""
        if self._first is None and packet.size and (packet.is_keyframe or self._entry is None):
            self._entry = seconds(packet.dts, packet.time_base)
        try:
            with self.watch:
                frames = self.stream.decode(packet)
        except FFmpegError:
            self.damaged += 1
            return
        untimed = sum(stamp(frame) is None for frame in frames)
        if untimed and not packet.size and self._is_timed:  # the delayed frames share the time of the delay
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
            # raw streams have no time stamps; those of joined files fall back, those of damaged files jump
            time = self._last + (self._step if time is None else self.tick)
        self._last = time or 0.0
        self._first = self._last if self._first is None else self._first
        length = seconds(frame.duration, frame.time_base) or self.tick
        return TimedFrame(frame, self._last, self._last + min(length, self.limits.max_duration))

    def _is_far(self, time: float) -> bool:
        """Return whether a time is beyond the limit of duration."""
        return time - (self._first or 0.0) > self.limits.max_duration


def stamp(frame: VideoFrame) -> int | None:
    """Return a frame's presentation time stamp, else the decoding time stamp of the packet that completed it."""
    return frame.dts if frame.pts is None else frame.pts


def read_packets(
    container: InputContainer, streams: Sequence[VideoStream | AudioStream], decoder: VideoDecoder
) -> Iterator[Packet[Any]]:
    """Yield the packets of some streams in file order, up to the end or the first damage of the container."""
    try:
        yield from decoder.watch.timed(container.demux(list(streams)))
    except FFmpegError:
        decoder.damaged += 1  # the container itself is damaged: nothing more can be read


def decode_video(container: InputContainer, stream: VideoStream, decoder: VideoDecoder) -> Iterator[TimedFrame]:
    """Yield all frames of a stream in order."""
    for packet in read_packets(container, [stream], decoder):
        yield from decoder.decode(packet)


@dataclass(frozen=True)
class VideoFrames:
    """`FrameSource` of a video file: planned frame i is the one presented at `times[i]`.

    Attributes:
        path: the file.
        start: time of the first frame on the file's clock, in seconds.
        size: upright (height, width) of all frames, also after a change within the stream.
        matrix: the display matrix, which makes decoded frames upright.
        times: planned times in seconds.
        fps: sampled frames per second.
        own_sound: False if the clip's audio comes from another file.
        limits: limits of the decoder.
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
        """Yield the requested frames in order of time; at most one RGB frame is in memory."""
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

    def dense(self, fps: float, longest_side: int) -> Iterator[Frame]:
        """Yield the whole video at `fps` frames a second, at most `longest_side` pixels large; a `DenseFrameSource`."""
        count = math.ceil((self.times[-1] + 0.5 / self.fps) * fps - 1e-6)
        times = tuple((i + 0.5) / fps for i in range(count))
        small = replace(self, times=times, fps=fps, size=small_size(self.size, longest_side))
        with open_media(self.path, self.limits) as container:
            stream = require_video(container, self.path, self.limits)
            decoder = VideoDecoder(stream, self.path, self.limits)
            yield from small._sample(list(range(count)), decode_video(container, stream, decoder))

    def _sample(self, queue: list[int], frames: Iterator[TimedFrame]) -> Iterator[Frame]:
        shown: TimedFrame | None = None
        image: ImageArray | None = None
        position = 0
        for current in frames:
            while self.times[queue[position]] + self.start < current.start - ROUNDING:
                shown = shown or current  # before the first frame that could be decoded
                image = to_image(shown.frame, self.size, self.matrix) if image is None else image
                yield Frame(queue[position], self.times[queue[position]], image)
                position += 1
                if position == len(queue):
                    return
            shown, image = current, None
        # The last frame also covers the rest of the interval in which it ends.
        while shown and position < len(queue) and self._begin(queue[position]) < shown.end - ROUNDING:
            image = to_image(shown.frame, self.size, self.matrix) if image is None else image
            yield Frame(queue[position], self.times[queue[position]], image)
            position += 1

    def _begin(self, index: int) -> float:
        """Return the start of a planned frame's interval, on the file's clock."""
        return self.start + self.times[index] - 0.5 / self.fps

    def _report(self, missing: int, damaged: int) -> None:
        if missing:
            logger.warning("%s ends early: %d planned frames are missing (truncated or damaged)", self.path, missing)
        elif damaged:
            logger.warning("%s is damaged: skipped %s", self.path, pluralize(damaged, "packet"))


def to_image(frame: VideoFrame, size: tuple[int, int], matrix: Matrix) -> ImageArray:
    """Convert a decoded frame to an upright RGB image, uint8 `[H, W, 3]` of the given size."""
    height, width = size[::-1] if is_turned(matrix) else size
    rgb = frame.to_ndarray(format="rgb24", width=width, height=height, src_color_range=frame.color_range)
    return upright(np.asarray(rgb, dtype=np.uint8), matrix)


def upright(image: ImageArray, matrix: Matrix) -> ImageArray:
    """Apply a display matrix: a quarter turn, mirrored or not; other matrices are ignored."""
    a, b, c, d = matrix
    if is_turned(matrix):
        image, flip_x, flip_y = image.transpose(1, 0, 2), c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
