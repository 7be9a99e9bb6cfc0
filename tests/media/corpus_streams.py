"""Unusual media that a muxer can write: odd rates, sizes, clocks, tracks and pixel formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from tests.media_files import corners, gray, make_media, tone

Make = Callable[[Path], object]
PICTURES = [gray(i) for i in range(20)]


def plain(path: Path, **options: object) -> Path:
    """Two seconds of video with sound in any container."""
    return make_media(path, PICTURES, sound=tone(2), **options)  # type: ignore[arg-type]


def resized(path: Path) -> None:
    """A stream whose pictures become larger in the middle."""
    parts = []
    for name, size in (("a.ts", (48, 64)), ("b.ts", (480, 640)), ("c.ts", (16, 16))):
        parts.append(make_media(path.with_name(f".{name}"), [gray(3, size)] * 10).read_bytes())
    path.write_bytes(b"".join(parts))


def cover_art(path: Path) -> None:
    """A song with a cover: the only video stream is an attached picture."""
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=44100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(gray(3), format="rgb24").reformat(format="yuvj420p")
        container.mux([*cover.encode(picture), *cover.encode(None)])
        piece = av.AudioFrame.from_ndarray(tone(1), format="fltp", layout="mono")
        piece.sample_rate = 44100
        container.mux([*audio.encode(piece), *audio.encode(None)])


def two_videos(path: Path) -> None:
    """Two video streams of different sizes, interleaved."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, (height, width) in zip(streams, [(48, 64), (96, 128)], strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for index in range(10):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(gray(index, (stream.height, stream.width)), format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))


def many_tracks(path: Path, count: int = 100) -> None:
    """A hundred sound tracks beside one video."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        tracks = [container.add_stream("pcm_s16le", rate=8000, layout="mono") for _ in range(count)]
        for index in range(10):
            container.mux(video.encode(av.VideoFrame.from_ndarray(gray(index), format="rgb24")))
        for track in tracks:
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = 8000, 0, Fraction(1, 8000)
            container.mux([*track.encode(piece), *track.encode(None)])
        container.mux(video.encode(None))


def stamped(path: Path, stamps: Sequence[int], codec: str = "mjpeg") -> None:
    """Pictures whose packets bear the given time stamps, in ms, in this order; the muxer gets wrong ones."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(gray(index), format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 10)
            for packet in stream.encode(frame):
                packet.pts = packet.dts = stamp
                packet.time_base = Fraction(1, 1000)
                try:
                    container.mux(packet)
                except ValueError:  # the muxer refuses some steps back; the rest goes on
                    continue


def sounds(path: Path, seconds: float, channels: int = 1, rate: int = 8000) -> None:
    """PCM of any number of channels and any rate, in front of two seconds of video."""
    layout = "mono" if channels == 1 else f"{channels} channels"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=rate, layout=layout)
        for index in range(20):
            container.mux(video.encode(av.VideoFrame.from_ndarray(gray(index), format="rgb24")))
        container.mux(video.encode(None))
        samples = np.zeros((1, round(seconds * rate) * channels), np.int16)
        samples[0, ::7] = 4000
        piece = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        piece.sample_rate, piece.pts, piece.time_base = rate, 0, Fraction(1, rate)
        container.mux([*audio.encode(piece), *audio.encode(None)])


def in_format(codec: str, pix_fmt: str) -> Make:
    """A video of an unusual pixel format."""

    def make(path: Path) -> None:
        make_media(path, [corners()] * 10, codec=codec, pix_fmt=pix_fmt)

    return make


def turned(rotation: int) -> Make:
    """A video with a display matrix."""

    def make(path: Path) -> None:
        make_media(path, [corners()] * 10, rotation=rotation)

    return make


ODD_FORMATS = {
    "yuv410p.avi": ("ffv1", "yuv410p"),
    "gray16.mkv": ("ffv1", "gray16le"),
    "gray10.mkv": ("ffv1", "gray10le"),
    "yuv420p10.mkv": ("libx265", "yuv420p10le"),
    "yuv444p16.mkv": ("ffv1", "yuv444p16le"),
    "rgba64.mkv": ("ffv1", "rgba64le"),
    "yuva444p.mkv": ("ffv1", "yuva444p"),
    "gbrp14.mkv": ("ffv1", "gbrp14le"),
    "pal8.gif": ("gif", "rgb8"),
    "monob.mov": ("rawvideo", "monob"),
}


def streams() -> dict[str, Make]:
    """File name -> what writes it; every one of them is a clip that works."""
    table: dict[str, Make] = {name: in_format(*form) for name, form in ODD_FORMATS.items()}
    table |= {f"turned{angle}.mp4": turned(angle) for angle in (90, -90, 180, 45, 1)}
    table |= {
        "plain.mp4": plain,
        "1000fps.mp4": lambda path: make_media(path, PICTURES, fps=1000, times=[i / 1000 for i in range(20)]),
        "1x1.mkv": lambda path: make_media(path, [gray(1, (1, 1))] * 3, codec="ffv1", pix_fmt="bgr0"),
        "1x4096.mkv": lambda path: make_media(path, [gray(1, (1, 4096))] * 3, codec="ffv1", pix_fmt="bgr0"),
        "one_frame.mp4": lambda path: make_media(path, PICTURES[:1]),
        "vfr.mkv": lambda path: make_media(path, PICTURES[:5], times=[0, 0.001, 0.9, 0.901, 40]),
        "resized.ts": resized,
        "two_videos.mkv": two_videos,
        "short_sound.mkv": lambda path: sounds(path, 0.1),
        "long_sound.mkv": lambda path: sounds(path, 20.0),
        "64_channels.mkv": lambda path: sounds(path, 2.0, channels=64),
        "255_channels.mov": lambda path: sounds(path, 2.0, channels=255),
        "1_kilohertz.mkv": lambda path: sounds(path, 2.0, rate=1000),
        "192_kilohertz.mkv": lambda path: sounds(path, 2.0, rate=192_000),
        "negative_times.mkv": lambda path: stamped(path, range(-900, 1000, 100)),
        "backward_times.avi": lambda path: stamped(path, [0, 500, 300, 900, 100, 1200, 1100, 2000]),
        "backward_times.ts": lambda path: stamped(path, [5000, 4000, 3000, 2000, 1000, 0], "mpeg2video"),
        "far_time.mkv": lambda path: stamped(path, [0, 100, 200, 300, 20 * 3600 * 1000]),
        "late_sound.mkv": lambda path: make_media(
            path, PICTURES, sound=tone(1), sound_start=50.0, sound_codec="pcm_s16le"
        ),
    }
    return table
