"""Encoding of H.264 + AAC mp4 files, which play in any browser, and of WebM and ProRes with transparency."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from openavs.errors import InputError
from openavs.media.audio import AudioDecoder, Samples, resample_samples
from openavs.media.limits import DEFAULT_LIMITS, MediaLimits
from openavs.media.probe import display_matrix, open_media, pick_audio, require_video
from openavs.media.video import VideoDecoder, VideoFrames, decode_video, to_image
from openavs.structures.types import Clip, ImageArray, Waveform
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


class _Track:
    """Encoder of frames at any times; the streams of its subclasses are in BT.709."""

    def __init__(self, container: OutputContainer, codec: str, rate: Fraction) -> None:
        self._container, self._last = container, -1
        self._held: VideoFrame | None = None
        self._stream = cast(VideoStream, container.add_stream(codec, rate=rate))

    def _open(self, size: Sequence[int], pixels: str, options: dict[str, str]) -> None:
        self._stream.height, self._stream.width, self._stream.pix_fmt = *size, pixels
        context = self._stream.codec_context
        context.time_base = Fraction(1, CLOCK)
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = 1
        context.options = options

    def _present(self, frame: VideoFrame, time: float, duration: float) -> None:
        """Encode a frame that is presented at `time` for `duration` seconds."""
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


class VideoTrack(_Track):
    """Encoder of images as H.264 yuv420p at any times; sizes become even, the long side at most `size_limit`."""

    def __init__(
        self, container: OutputContainer, size: tuple[int, int], rate: float, size_limit: int | None = None
    ) -> None:
        super().__init__(container, "libx264", Fraction(rate).limit_denominator(1001))
        self._in = size
        scale = min(1.0, (size_limit or max(size)) / max(size))
        # images are padded to even sizes and not scaled, so that their pixels stay the same
        self.scaled = scale < 1.0
        self.size = tuple(max(2, 2 * round(s * scale / 2) if self.scaled else s + s % 2) for s in size)
        self._open(self.size, "yuv420p", {"crf": "20", "preset": "veryfast"})
        self._stream.codec_context.thread_count = min(4, os.cpu_count() or 1)

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
        self._present(frame, time, duration)


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


Kind = Literal["webm", "mov"]


@dataclass(frozen=True)
class TimedImage:
    """An image with its presentation time and duration, in seconds from the first one."""

    time: float
    duration: float
    image: ImageArray


@dataclass(frozen=True)
class AudioSource:
    """Samples `[N, channels]`, one or two channels, and their rate in Hz; sample 0 is at the first frame."""

    samples: Samples
    rate: int


def clip_images(clip: Clip) -> Generator[TimedImage]:
    """Yield all frames of a clip, one at a time: a video's at its own rate, else the sampled ones at `fps`."""
    source = clip.frames
    if not isinstance(source, VideoFrames):
        yield from (TimedImage(frame.index / clip.fps, 1 / clip.fps, frame.image) for frame in source(None))
        return
    with open_media(source.path, source.limits) as container:
        stream = require_video(container, source.path, source.limits)
        for shown in decode_video(container, stream, VideoDecoder(stream, source.path, source.limits)):
            image = to_image(shown.frame, source.size, display_matrix(shown.frame))
            yield TimedImage(shown.start - source.start, shown.end - shown.start, image)


def clip_audio(clip: Clip) -> AudioSource | None:
    """Return a clip's audio, in stereo where its own track is; None without audio."""
    if isinstance(clip.frames, VideoFrames) and clip.frames.own_sound:
        return file_audio(clip.frames.path, clip.frames.start, clip.frames.limits)
    return None if clip.audio is None else AudioSource(clip.audio.samples[:, None], clip.audio.rate)


def file_audio(path: Path, start: float = 0.0, limits: MediaLimits = DEFAULT_LIMITS) -> AudioSource | None:
    """Return the audio of a file from `start` seconds of its clock on; None without audio."""
    with open_media(path, limits) as container:
        stream = pick_audio(container)
        if stream is None:
            return None
        decoder = AudioDecoder(stream, path, limits, start, channels=2 if stream.channels == 2 else 1)
        decoder.run(container)
        return AudioSource(decoder.samples(), decoder.rate) if decoder.buffer.length else None


def write_transparent(path: Path, images: Iterable[TimedImage], kind: Kind, sound: AudioSource | None = None) -> int:
    """Write RGBA images uint8 `[H, W, 4]` (straight alpha) and return their number.

    `webm` is VP9 with an alpha layer and Opus, for browsers; `mov` is ProRes 4444 and PCM, for editors. Odd sizes are
    padded by a transparent row or column. The file is written atomically.

    Raises:
        InputError: no images, or images of different sizes.
    """
    count = 0
    with atomic_replace(path) as temporary, av.open(str(temporary), "w", format=kind) as container:
        track: AlphaTrack | None = None
        encoder: EncodedAudio | None = None
        for shown in images:
            if track is None:
                track = AlphaTrack(container, shown, kind)
                encoder = _sound_track(container, sound, kind)
            track.add(shown)
            if encoder is not None:
                encoder.until(shown.time + 0.5)
            count += 1
        if track is None:
            raise InputError(f"there are no frames to write to {path}")
        track.finish()
        if encoder is not None:
            encoder.finish()
    return count


class AlphaTrack(_Track):
    """Encoder of RGBA images at any times."""

    def __init__(self, container: OutputContainer, first: TimedImage, kind: Kind) -> None:
        rate = Fraction(1 / max(first.duration, 1e-3)).limit_denominator(1001)
        super().__init__(container, "libvpx-vp9" if kind == "webm" else "prores_ks", rate)
        height, width = first.image.shape[:2]
        self._in, self.size = (height, width), (height + height % 2, width + width % 2)
        if kind == "webm":
            self._format = "yuva420p"
            # libvpx has no alternate reference frames for alpha; players need 'alpha_mode' to use the layer.
            options = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1", "auto-alt-ref": "0"}
            self._stream.metadata["alpha_mode"] = "1"
        else:
            self._format, options = "yuva444p10le", {"profile": "4444", "alpha_bits": "16", "vendor": "apl0"}
        self._open(self.size, self._format, options)

    def add(self, shown: TimedImage) -> None:
        """Encode one image."""
        image = shown.image
        if image.shape != (*self._in, 4):
            raise InputError(f"an image is uint8 {[*self._in, 4]} like the first one, not {list(image.shape)}")
        pad = [(0, out - had) for out, had in zip(self.size, self._in, strict=True)]
        if any(more for _, more in pad):
            image = np.pad(image, [*pad, (0, 0)])
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgba").reformat(
            format=self._format, dst_colorspace="ITU709"
        )
        self._present(frame, shown.time, shown.duration)


def _sound_track(container: OutputContainer, sound: AudioSource | None, kind: Kind) -> EncodedAudio | None:
    if sound is None or not len(sound.samples):
        return None
    codec: SoundCodec = "libopus" if kind == "webm" else "pcm_s16le"
    rate = 48000 if kind == "webm" else sound.rate  # Opus has no 44.1 kHz
    samples = sound.samples if rate == sound.rate else resample_samples(sound.samples, sound.rate, rate)
    return EncodedAudio(container, samples, rate, codec)
