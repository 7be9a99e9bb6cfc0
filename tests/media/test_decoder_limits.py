"""Decoding takes a set amount of memory: what is not known to be modest is tried in a process under a limit first."""

from __future__ import annotations

import resource
import struct
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from openavs.errors import InputError
from openavs.media import limits
from openavs.media.audio import read_audio
from openavs.media.clip import open_clip, probe
from openavs.media.limits import MediaLimits
from tests.media.corpus_bytes import png_video
from tests.media.corpus_streams import plain
from tests.media.test_hostile import tried
from tests.media_files import gray, make_media, tone

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")

GIGABYTE = MediaLimits(max_memory=1 << 30)


@pytest.fixture(autouse=True)
def nothing_tried() -> Iterator[None]:
    """No test knows what another one has tried."""
    limits._problem.cache_clear()
    yield
    limits._problem.cache_clear()


def tiny_precincts(path: Path, side: int) -> Path:
    """A video of one JPEG 2000 picture in tiles of 4 pixels, each with its tables: takes 70 times its size."""

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">HH", marker, len(body) + 2) + body

    size = struct.pack(">H8IH", 0, side, side, 0, 0, side, side, 0, 0, 3) + b"\x07\x01\x01" * 3
    style = bytes([1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0x22])  # precincts of 2^2 x 2^2
    data = b"\xff\x4f" + segment(0xFF51, size) + segment(0xFF52, style) + segment(0xFF5C, b"\x40\x40")
    data += segment(0xFF90, struct.pack(">HIBB", 0, 0, 0, 1)) + b"\xff\x93" + bytes(200) + b"\xff\xd9"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("jpeg2000", rate=10)
        stream.height, stream.width, stream.pix_fmt = side, side, "rgb24"
        packet = av.Packet(data)
        packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 10), 0, 0
        packet.is_keyframe = True
        container.mux(packet)
    return path


def resident() -> int:
    """The most memory in MB that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@pytest.mark.faults
def test_a_kilobyte_that_needs_a_gigabyte_is_refused(tmp_path: Path) -> None:
    path = tiny_precincts(tmp_path / "greedy.mov", 2880)
    assert path.stat().st_size < 2000
    before = resident()
    for read in (open_clip, probe):
        with pytest.raises(InputError, match=r"greedy\.mov \(jpeg2000\) takes more memory to decode than the limit of"):
            read(path, limits=GIGABYTE)
    assert resident() - before < 100
    assert limits._problem.cache_info().misses == 1, "it is tried once"


def test_a_rare_codec_and_large_pictures_are_tried_and_decoded(tmp_path: Path) -> None:
    rare = make_media(tmp_path / "a.mov", [gray(i) for i in range(5)], codec="jpeg2000", pix_fmt="rgb24")
    assert len(list(open_clip(rare, fps=10).frames(None))) == 5
    large = tmp_path / "large.mov"
    png_video(3200, 3200, large)
    assert open_clip(large).size == (3200, 3200)
    with pytest.raises(InputError, match="over the limit of"):
        open_clip(large, limits=MediaLimits(max_pixels=1_000_000))
    assert limits._problem.cache_info().misses == 3


def test_what_nearly_all_files_are_made_of_costs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    pictures = [gray(i) for i in range(3)]
    for name, codec, form in (
        ("a.mp4", "libx264", "yuv420p"),
        ("b.mp4", "libx265", "yuv420p"),
        ("c.webm", "libvpx-vp9", "yuv420p"),
        ("d.mp4", "libsvtav1", "yuv420p"),
        ("e.mov", "prores_ks", "yuv422p10le"),
        ("f.avi", "mpeg4", "yuv420p"),
        ("g.avi", "mjpeg", "yuvj420p"),
        ("h.gif", "gif", "rgb8"),
    ):
        assert probe(make_media(tmp_path / name, pictures, codec=codec, pix_fmt=form)).size == (48, 64), name
    for name, codec in (("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame"), ("a.ogg", "libopus"), ("a.flac", "flac")):
        assert read_audio(make_media(tmp_path / name, sound=tone(1, 48000), rate=48000, sound_codec=codec)), name


def test_a_transport_stream_is_looked_at_in_a_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plain(tmp_path / "a.ts")
    assert len(list(open_clip(path).frames(None))) > 0
    assert limits._problem.cache_info().misses == 1
    limits._problem.cache_clear()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match=r"a\.ts ends the process that decodes it"):
        open_clip(path)


@pytest.mark.faults
def test_a_decoder_that_crashes_takes_the_child_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_media(tmp_path / "a.mov", [gray(0)], codec="jpeg2000", pix_fmt="rgb24")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match=r"a\.mov \(jpeg2000\) ends the process that decodes it"):
        open_clip(path)


@pytest.mark.faults
def test_a_decoder_that_never_ends_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_media(tmp_path / "a.mov", [gray(0)], codec="jpeg2000", pix_fmt="rgb24")
    for name in ("DECODE_SECONDS", "DECODE_SECONDS_PER_MEGABYTE"):
        monkeypatch.setattr(limits, name, 0.0)
    monkeypatch.setattr(limits, "STARTUP_SECONDS", 0.01)
    with pytest.raises(InputError, match="is not decoded within 0 s"):
        open_clip(path)


@pytest.mark.parametrize(
    ("codec", "form", "options", "wider"),
    [
        ("libx264", "yuv444p10le", {"refs": "16", "bf": "16", "preset": "ultrafast"}, 1),
        (
            "libx265",
            "yuv444p12le",
            {"preset": "ultrafast", "x265-params": "ref=8:bframes=16:rc-lookahead=20:log-level=none"},
            1,
        ),
        ("libvpx-vp9", "yuv444p", {"deadline": "realtime", "cpu-used": "8"}, 2),
    ],
)
def test_modest_decoders_stay_below_the_limit_at_their_largest(
    codec: str, form: str, options: dict[str, str], wider: int, tmp_path: Path
) -> None:
    """Measured at an eighth of the largest pictures; 12 bits and 4:4:4 would take `wider` times as much at most."""
    slope = np.repeat(np.arange(1344, dtype=np.uint16)[None, :, None] * 255 // 1344, 832, 0).astype(np.uint8)
    pictures = [np.roll(np.repeat(slope, 3, 2), 3 * i, 1) for i in range(20)]
    make_media(tmp_path / "a.mkv", pictures, fps=25, codec=codec, pix_fmt=form, codec_options=options)
    plain(tmp_path / "good.mp4")
    done = tried(tmp_path, [{"name": "a.mkv", "path": "a.mkv"}])["a.mkv"]
    assert done["outcome"] == "clip", done
    a_pixel = (done["megabytes"] - done["base"]) * 2**20 / (832 * 1344)
    assert a_pixel * wider * limits.DIRECT_PIXELS < MediaLimits().max_memory
