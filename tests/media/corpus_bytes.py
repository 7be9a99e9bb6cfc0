"""Media whose bytes lie: cut short, flipped, patched headers that promise what is not there, bombs."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

from tests.media.corpus_streams import Make, many_tracks, plain
from tests.media_files import gray, make_media, tone

DAY = 24 * 3600
HUGE = 16384  # pixels a side


# ------------------------------------------------------------------------------------------------- bytes in general


def cut(share: float, path: Path) -> None:
    """The first part of a sound file: its index is in front where the container has one."""
    data = plain(path, options={"movflags": "+faststart"} if path.suffix == ".mp4" else {}).read_bytes()
    path.write_bytes(data[: round(len(data) * share)])


def flipped(seed: int, path: Path) -> None:
    """A file with one bit in a thousand turned over."""
    data = np.frombuffer(plain(path).read_bytes(), np.uint8).copy()
    random = np.random.default_rng(seed)
    for place in random.integers(0, len(data), max(1, len(data) * 8 // 1000)):
        data[place] ^= 1 << int(random.integers(8))
    path.write_bytes(data.tobytes())


def noise(seed: int, path: Path) -> None:
    """Random bytes, after the first bytes of a real file where the seed is even."""
    head = plain(path).read_bytes()[:64] if seed % 2 == 0 else b""
    path.write_bytes(head + np.random.default_rng(seed).bytes(20_000))


# ------------------------------------------------------------------------------------------------------ mp4's boxes


def patched(path: Path, box: bytes, at: int, value: bytes, which: int = 0) -> None:
    """An mp4 with some bytes of its nth box of a kind replaced; `at` counts from behind the box's name."""
    if not path.exists():
        plain(path)
    data = bytearray(path.read_bytes())
    place = -1
    for _ in range(which + 1):
        place = data.index(box, place + 1)
    data[place + 4 + at : place + 4 + at + len(value)] = value
    path.write_bytes(data)


def u32(*values: int) -> bytes:
    """Big-endian words."""
    return struct.pack(f">{len(values)}I", *values)


def day_long(path: Path) -> None:
    """Every header says 24 hours and a bit."""
    patched(path, b"mvhd", 16, u32(DAY * 1000 + 5000))
    for which in (0, 1):
        patched(path, b"tkhd", 20, u32(DAY * 1000 + 5000), which)
        patched(path, b"elst", 8, u32(DAY * 1000 + 5000), which)
    patched(path, b"mdhd", 16, u32((DAY + 5) * 16000))


def day_of_silence(path: Path) -> None:
    """The header promises almost a day, and one sound packet is at its end."""
    samples = tone(1, 48000)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=48000, layout="mono")
        for index in range(5):
            container.mux(video.encode(av.VideoFrame.from_ndarray(gray(index), format="rgb24")))
        container.mux(video.encode(None))
        for start in (0, (DAY - 60) * 48000):
            piece = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16), format="s16", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
            container.mux(audio.encode(piece))
        container.mux(audio.encode(None))


def many_samples(count: int, size: int, path: Path) -> None:
    """The sample table of the video says that it has `count` pictures of `size` bytes, all in one chunk."""
    patched(path, b"stts", 8, u32(count))
    patched(path, b"stsz", 4, u32(size, count))
    patched(path, b"stsc", 4, u32(1, 1, count, 1))


def no_rate(path: Path) -> None:
    """All pictures last no time at all: 0 frames a second, or infinitely many."""
    patched(path, b"stts", 4, u32(1, 20, 0))
    patched(path, b"mdhd", 16, u32(0))


def no_clock(path: Path) -> None:
    """A time scale of zero."""
    patched(path, b"mdhd", 12, u32(0))
    patched(path, b"mvhd", 12, u32(0))


def claimed_size(width: int, height: int, path: Path) -> None:
    """The container's header claims a size that its pictures have not."""
    patched(path, b"avc1", 24, struct.pack(">HH", width, height), 1)


# ----------------------------------------------------------------------------------------------------------- others


def flat_png(side: int) -> bytes:
    """A whole 1-bit PNG of side x side pixels: kilobytes that become megabytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + u32(zlib.crc32(kind + body))

    rows = zlib.compress(bytes(side * (1 + -(-side // 8))), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def png_video(claim: int, side: int, path: Path, more: int = 0) -> None:
    """A video of PNG pictures; the container says `claim` pixels a side (`more`: the first pictures have those)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.height, stream.width, stream.pix_fmt = claim, claim, "gray"
        for index, data in enumerate([flat_png(claim)] * more + [flat_png(side)] * 3):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 10)
            packet.pts = packet.dts = index
            packet.is_keyframe = True
            container.mux(packet)


def huge(path: Path) -> None:
    """A video of 16384 x 16384 pixels that says so: half a megabyte that becomes 800."""
    png_video(64, HUGE, path)
    patched(path, b"png ", 28, struct.pack(">HH", HUGE, HUGE))


def many_indexes(path: Path) -> None:
    """Every one of many tracks says that it has twenty million samples."""
    many_tracks(path, 20)
    data = path.read_bytes()
    for which in range(data.count(b"stsz")):
        patched(path, b"stts", 4, u32(2, 10_000_000, 1, 10_000_000, 2)[:8], which)
        patched(path, b"stsz", 4, u32(1, 20_000_000), which)
        patched(path, b"stsc", 4, u32(1, 1, 20_000_000, 1), which)


def many_in_a_fragment(path: Path) -> None:
    """One run of a fragment says that it has twenty million samples and nothing else of them."""
    plain(path, options={"movflags": "+frag_keyframe+empty_moov+default_base_moof"})
    flags = int.from_bytes(path.read_bytes()[path.read_bytes().index(b"trun") + 4 :][:4], "big") & ~0xF00
    patched(path, b"trun", 0, u32(flags, 20_000_000))


def wav(path: Path, rate: int = 8000, channels: int = 1, size: int | None = None, bits: int = 16) -> None:
    """A WAVE file whose header says anything."""
    data = (tone(1, 8000)[0] * 32767).astype("<i2").tobytes()
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, bits)
    claimed = len(data) if size is None else size
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", claimed) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", min(claimed + 36, 0xFFFFFFFF)) + body)


def float_wav(value: float, path: Path) -> None:
    """32-bit float samples, one of which is NaN."""
    samples = tone(1, 8000)[0].copy()
    samples[4000] = value
    data = samples.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, 8000, 32000, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


CUTS = {".mp4": 20, ".mkv": 20, ".ts": 10, ".avi": 10, ".wav": 5}


def damaged() -> dict[str, Make]:
    """File name -> what writes it; a clip that says what is missing, or one sentence."""
    table: dict[str, Make] = {}
    for suffix, parts in CUTS.items():
        if suffix != ".wav":
            table |= {f"cut{100 * i // parts:02d}{suffix}": partial(cut, i / parts) for i in range(1, parts)}
            table |= {f"flip{seed}{suffix}": partial(flipped, seed) for seed in range(8)}
        table |= {f"noise{seed}{suffix}": partial(noise, seed) for seed in range(4) if suffix != ".wav"}
    return table


def lies() -> dict[str, Make]:
    """File name -> what writes a header that promises other than what follows."""
    table: dict[str, Make] = {
        "day_long.mp4": day_long,
        "day_of_silence.mkv": day_of_silence,
        "0fps.mp4": no_rate,
        "no_clock.mp4": no_clock,
        "claims_16384.mp4": partial(claimed_size, HUGE, HUGE),
        "claims_0.mp4": partial(claimed_size, 0, 0),
        "claims_1.mp4": partial(claimed_size, 1, 1),
        "huge.mov": huge,
        "100_tracks.mkv": partial(many_tracks, count=100),
        "20_indexes.mp4": many_indexes,
        "fragment.mp4": many_in_a_fragment,
        "secretly_huge.mov": partial(png_video, 64, HUGE),
        "grows_huge.mov": partial(png_video, 64, HUGE, more=3),
        "many_edits.mp4": lambda path: patched(path, b"elst", 4, u32(0x0FFFFFFF)),
        "many_offsets.mp4": lambda path: patched(path, b"ctts", 4, u32(0x0FFFFFFF)),
        "long_offset.mp4": lambda path: patched(path, b"ctts", 8, u32(0x7FFFFFFF)),
        "many_chunks.mp4": lambda path: patched(path, b"stco", 4, u32(0x3FFFFFFF)),
        "huge_box.mp4": lambda path: patched(path, b"moov", -8, u32(0xFFFFFFF0)),
    }
    for count in (1_000_000, 64_000_000, 0x7FFFFFFF):
        for size in (0, 1):
            table[f"{count}_samples_of_{size}.mp4"] = partial(many_samples, count, size)
    return table


def sounds() -> dict[str, Make]:
    """File name -> what writes a sound for `audio=`."""
    return {
        "rate_4e9.wav": lambda path: wav(path, rate=0xFFFFFFFF),
        "rate_2e9.wav": lambda path: wav(path, rate=0x7FFFFFFF),
        "rate_0.wav": lambda path: wav(path, rate=0),
        "rate_1.wav": lambda path: wav(path, rate=1),
        "rate_10_million.wav": lambda path: wav(path, rate=10_000_000),
        "channels_0.wav": lambda path: wav(path, channels=0),
        "channels_64.wav": lambda path: wav(path, channels=64),
        "channels_65535.wav": lambda path: wav(path, channels=65535),
        "size_4e9.wav": lambda path: wav(path, size=0xFFFFFFFF),
        "size_0.wav": lambda path: wav(path, size=0),
        "bits_3.wav": lambda path: wav(path, bits=3),
        "bits_64.wav": lambda path: wav(path, bits=64),
        "nan.wav": partial(float_wav, float("nan")),
        "inf.wav": partial(float_wav, float("inf")),
        "loud.wav": partial(float_wav, 1e30),
        "text.wav": lambda path: path.write_text("RIFF this is no sound"),
        "empty.wav": lambda path: path.write_bytes(b""),
        "cut.mp3": lambda path: cut_sound(path, 0.5),
        "cut.ogg": lambda path: cut_sound(path, 0.5),
        "cut.flac": lambda path: cut_sound(path, 0.5),
    }


def cut_sound(path: Path, share: float) -> None:
    """Part of a sound file."""
    codec = {".mp3": "libmp3lame", ".ogg": "libopus", ".flac": "flac"}[path.suffix]
    data = make_media(path, sound=tone(2, 48000), rate=48000, sound_codec=codec).read_bytes()
    path.write_bytes(data[: round(len(data) * share)])
