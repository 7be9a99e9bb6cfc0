"""Makes small media files for tests: pictures whose gray level is their number, sounds whose level is known."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from openavs.structures.types import ImageArray

STEP = 8  # gray levels between one frame and the next: more than a codec loses


def gray(index: int, size: tuple[int, int] = (48, 64)) -> ImageArray:
    """The picture of frame `index` (up to 30 different ones)."""
    return np.full((*size, 3), 8 + STEP * (index % 30), np.uint8)


def which(image: ImageArray) -> int:
    """The frame number of a picture."""
    return round((float(image.mean()) - 8) / STEP)


def corners(size: tuple[int, int] = (48, 64)) -> ImageArray:
    """A picture that shows how it is turned: red top left, green top right, blue bottom left, black bottom right."""
    image = np.zeros((*size, 3), np.uint8)
    top, left = size[0] // 2, size[1] // 2
    image[:top, :left, 0] = image[:top, left:, 1] = image[top:, :left, 2] = 250
    return image


def corner_names(image: ImageArray) -> str:
    """The colors of the four corners in reading order, as in "RGBK"."""
    spots = (image[4, 4], image[4, -5], image[-5, 4], image[-5, -5])
    return "".join("K" if spot.max() < 90 else "RGB"[int(spot.argmax())] for spot in spots)


def tone(seconds: float, rate: int = 44100, level: float = 0.25, channels: int = 1) -> npt.NDArray[np.float32]:
    """A 440 Hz sine `[channels, N]`."""
    wave = level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[None].astype(np.float32), channels, axis=0)


def make_media(
    path: Path,
    pictures: Sequence[ImageArray] | None = None,
    *,
    fps: float = 10,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    rotation: int | None = None,
    matrix: Sequence[int] | None = None,
    sound: npt.NDArray[np.float32] | None = None,
    rate: int = 44100,
    sound_codec: str = "aac",
    sound_start: float = 0.0,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes pictures (at `times` in s, else at `fps`) and sound `[channels, N]` into any container."""
    with av.open(str(path), "w", options=options or {}) as container:
        video = audio = None
        if pictures is not None:
            video = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=codec_options or {})
            video.height, video.width, video.pix_fmt = *pictures[0].shape[:2], pix_fmt
            if codec != "mpeg2video":  # which knows only the ticks of its frame rate
                video.codec_context.time_base = Fraction(1, 1000)
            if rotation is not None:
                video.set_display_rotation(rotation)
            if matrix is not None:
                video.set_display_matrix(list(matrix))
        if sound is not None:
            layout = "mono" if len(sound) == 1 else "stereo"
            audio = container.add_stream(sound_codec, rate=rate, layout=layout)
        for index, picture in enumerate(pictures or ()):
            assert video is not None
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            time = times[index] if times is not None else index / fps
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        if video is not None:
            container.mux(video.encode(None))
        if sound is not None and audio is not None:
            for start in range(0, sound.shape[1], 1024):
                part = np.ascontiguousarray(sound[:, start : start + 1024])
                piece = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
                piece.sample_rate, piece.time_base = rate, Fraction(1, rate)
                piece.pts = start + round(sound_start * rate)
                container.mux(audio.encode(piece))
            container.mux(audio.encode(None))
    return path
