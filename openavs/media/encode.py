"""Encoding of H.264 + AAC mp4 files, which play in any browser."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import OutputContainer
from av.video.frame import VideoFrame

from openavs.errors import InputError
from openavs.media.audio import Samples, resample_samples
from openavs.structures.types import ImageArray, Waveform
from openavs.utils.fs import atomic_replace

CLOCK = 90000  # ticks per second of the video's time stamps
HELD = 3600 * CLOCK  # ticks; a frame is repeated after an hour, because mp4 and mov have no gaps of 7 hours
BT709 = 1  # the same number stands for matrix, primaries and transfer
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)


SoundCodec = Literal["aac", "libopus", "pcm_s16le"]


class EncodedAudio:
    """Encoder of samples `[N, channels]` (1 or 2) as AAC, Opus or PCM, from time 0."""

    def __init__(self, container: OutputContainer, samples: Samples, rate: int, codec: SoundCodec = "aac") -> None:
        self._container, self._samples, self._rate = container, samples, rate
        self._layout = "mono" if samples.shape[1] == 1 else "stereo"
        self._stream = container.add_stream(codec, rate=rate, layout=self._layout)
        self._stream.bit_rate = min(96000, 5 * rate) * samples.shape[1]  # AAC has at most 6 bits per sample
        self._done = 0

    def until(self, time: float) -> None:
        """Encode up to a time in seconds; past the end, flush the encoder."""
        end = len(self._samples) if time * self._rate >= len(self._samples) else int(time * self._rate)
        for start in range(self._done, end, self._rate):
            part = np.ascontiguousarray(self._samples[start : min(start + self._rate, end)].T)
            frame = AudioFrame.from_ndarray(part, format="fltp", layout=self._layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, start, Fraction(1, self._rate)
            self._container.mux(self._stream.encode(frame))
        self._done = max(self._done, end)

    def finish(self) -> None:
        """Encode the rest."""
        self.until(float("inf"))
        self._container.mux(self._stream.encode(None))


def encode_audio(container: OutputContainer, samples: Samples, rate: int) -> EncodedAudio:
    """Return an AAC encoder of samples `[N, channels]`, resampled if AAC lacks their rate."""
    if rate not in AAC_RATES:
        samples, rate = resample_samples(samples, rate, 48000), 48000
    return EncodedAudio(container, samples, rate)


class VideoTrack:
    """Encoder of images as H.264 yuv420p at any times; sizes become even, the long side at most `size_limit`."""

    def __init__(
        self, container: OutputContainer, size: tuple[int, int], rate: float, size_limit: int | None = None
    ) -> None:
        self._container, self._last, self._in = container, -1, size
        self._held: VideoFrame | None = None
        scale = min(1.0, (size_limit or max(size)) / max(size))
        # images are padded to even sizes and not scaled, so that their pixels stay the same
        self.scaled = scale < 1.0
        self.size = tuple(max(2, 2 * round(s * scale / 2) if self.scaled else s + s % 2) for s in size)
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *self.size, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, CLOCK)
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = 1
        context.options = {"crf": "20", "preset": "veryfast"}
        context.thread_count = min(4, os.cpu_count() or 1)
        self._stream = stream

    def add(self, image: ImageArray, time: float, duration: float) -> None:
        """Encode an RGB image uint8 `[H, W, 3]` presented at `time` for `duration` seconds."""
        if image.dtype != np.uint8 or image.shape != (*self._in, 3):
            raise InputError(
                f"a frame is uint8 {[*self._in, 3]} like the first one, not {image.dtype} {list(image.shape)}"
            )
        if not self.scaled and image.shape[:2] != self.size:
            pad = [(0, out - had) for out, had in zip(self.size, image.shape[:2], strict=True)]
            image = np.pad(image, [*pad, (0, 0)], mode="edge")
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
            width=self.size[1], height=self.size[0], format="yuv420p", dst_colorspace="ITU709", interpolation="AREA"
        )
        at = max(round(time * CLOCK), self._last + 1)
        while self._held is not None and at - self._last > HELD:
            self._encode(self._held, self._last + HELD, HELD)
        self._encode(frame, at, min(max(1, round(duration * CLOCK)), HELD))
        self._held = frame

    def _encode(self, frame: VideoFrame, at: int, duration: int) -> None:
        frame.pts, frame.time_base, frame.duration, self._last = at, Fraction(1, CLOCK), duration, at
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Flush the encoder."""
        self._container.mux(self._stream.encode(None))


def open_mp4(path: Path) -> OutputContainer:
    """Open an mp4 for writing, with its index in front so that it plays while it loads."""
    return av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})


def write_video(path: str | Path, frames: Iterable[ImageArray], fps: float, audio: Waveform | None = None) -> None:
    """Write RGB frames uint8 `[H, W, 3]` of one size at `fps`, with an optional audio track from time 0.

    Odd sizes are padded by one repeated row or column. Frames are read one at a time; the file is written atomically.

    Raises:
        InputError: no frames, or frames of different sizes.
    """
    write_timed(Path(path), ((i / fps, image) for i, image in enumerate(frames)), fps, audio, None)


def write_timed(
    path: Path, pictures: Iterable[tuple[float, ImageArray]], fps: float, audio: Waveform | None, size_limit: int | None
) -> None:
    """Write images with their times in seconds, each presented for 1 / fps; see `write_video`."""
    with atomic_replace(path) as temporary, open_mp4(temporary) as container:
        track: VideoTrack | None = None
        sound: EncodedAudio | None = None
        for time, image in pictures:
            if track is None:
                track = VideoTrack(container, (image.shape[0], image.shape[1]), fps, size_limit)
                if audio is not None and len(audio.samples):
                    sound = encode_audio(container, audio.samples[:, None], audio.rate)
            track.add(image, time, 1 / fps)
            if sound:
                sound.until(time + 1 / fps)
        if track is None:
            raise InputError(f"there are no frames to write to {path}")
        track.finish()
        if sound:
            sound.finish()
