"""Video with transparency: frames of a source at their own times, written as WebM or ProRes."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
from av.container import OutputContainer
from av.video.frame import VideoFrame

from openavs.errors import InputError
from openavs.media.audio import AudioDecoder, resample_samples
from openavs.media.encode import BT709, CLOCK, HELD, EncodedAudio, SoundCodec
from openavs.media.limits import DEFAULT_LIMITS, MediaLimits
from openavs.media.probe import display_matrix, open_media, pick_audio, require_video
from openavs.media.video import VideoDecoder, VideoFrames, decode_video, to_image
from openavs.structures.types import Clip, ImageArray
from openavs.utils.fs import atomic_replace

Kind = Literal["webm", "mov"]
Samples = npt.NDArray[np.float32]


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


class AlphaTrack:
    """Encoder of RGBA images at any times."""

    def __init__(self, container: OutputContainer, first: TimedImage, kind: Kind) -> None:
        self._container, self._last = container, -1
        self._held: VideoFrame | None = None
        height, width = first.image.shape[:2]
        self._in, self.size = (height, width), (height + height % 2, width + width % 2)
        rate = Fraction(1 / max(first.duration, 1e-3)).limit_denominator(1001)
        if kind == "webm":
            stream = container.add_stream("libvpx-vp9", rate=rate)
            self._format = "yuva420p"
            # libvpx has no alternate reference frames for alpha; players need 'alpha_mode' to use the layer.
            options = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1", "auto-alt-ref": "0"}
            stream.metadata["alpha_mode"] = "1"
        else:
            stream = container.add_stream("prores_ks", rate=rate)
            self._format, options = "yuva444p10le", {"profile": "4444", "alpha_bits": "16", "vendor": "apl0"}
        stream.height, stream.width, stream.pix_fmt = *self.size, self._format
        context = stream.codec_context
        context.time_base = Fraction(1, CLOCK)
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = 1
        context.options = options
        self._stream = stream

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
        at = max(round(shown.time * CLOCK), self._last + 1)
        while self._held is not None and at - self._last > HELD:
            self._encode(self._held, self._last + HELD, HELD)
        self._encode(frame, at, min(max(1, round(shown.duration * CLOCK)), HELD))
        self._held = frame

    def _encode(self, frame: VideoFrame, at: int, duration: int) -> None:
        frame.pts, frame.time_base, frame.duration, self._last = at, Fraction(1, CLOCK), duration, at
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Flush the encoder."""
        self._container.mux(self._stream.encode(None))


def _sound_track(container: OutputContainer, sound: AudioSource | None, kind: Kind) -> EncodedAudio | None:
    if sound is None or not len(sound.samples):
        return None
    codec: SoundCodec = "libopus" if kind == "webm" else "pcm_s16le"
    rate = 48000 if kind == "webm" else sound.rate  # Opus has no 44.1 kHz
    samples = sound.samples if rate == sound.rate else resample_samples(sound.samples, sound.rate, rate)
    return EncodedAudio(container, samples, rate, codec)
