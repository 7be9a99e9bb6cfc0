"""Pictures and sound keep their true times, against a counter drawn into the pictures and noise in the sound.

The tolerances are one picture and 10 ms of sound. AVI stores times in ticks of its picture rate, and FFmpeg rounds the
delay of the MP3 encoder to a tick when it writes the file, so half a tick is added there.
"""

from __future__ import annotations

import io
import logging
import statistics
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from openavs.media.audio import SLACK
from openavs.media.clip import open_clip, probe
from openavs.structures.types import Clip
from tests.media.truth import RATES, Rate, constant, picture_errors, picture_offsets, sound_offset, write_truth

TOLERANCE = 0.01  # s
FPS = 12.0
SLOW = pytest.mark.slow
PLACES = (0.1, 1.7, 3.4)  # s of the noise that are compared


@dataclass(frozen=True)
class Kind:
    """A container with its codecs; `clock` is what it rounds times to, in ticks of the rate."""

    ending: str
    options: dict[str, Any] = field(default_factory=dict)
    clock: float = 0.0
    rates: tuple[str, ...] = ("25", "29.97", "variable")


NO_B = {"bf": "0"}
MJPEG = {"codec": "mjpeg", "pix_fmt": "yuvj420p"}
OPUS = {"sound_codec": "libopus", "sound_rate": 48000}
MP3 = {"sound_codec": "libmp3lame"}
PCM = {"sound_codec": "pcm_s16le"}
CONSTANT = ("25", "29.97")
KINDS = {
    "mp4-h264-aac": Kind("mp4"),
    "mp4-h264-mp3": Kind("mp4", MP3),
    "mp4-fragments": Kind("mp4", {"options": {"movflags": "frag_keyframe+empty_moov"}}),
    "mp4-mpeg4-aac": Kind("mp4", {"codec": "mpeg4"}),
    "mov-h264-pcm": Kind("mov", PCM),
    "mov-mjpeg-pcm": Kind("mov", {**MJPEG, **PCM}),
    "3gp-mpeg4-aac": Kind("3gp", {"codec": "mpeg4"}),
    "mkv-h264-aac": Kind("mkv"),
    "mkv-live": Kind("mkv", {"options": {"live": "1"}}),
    "mkv-mpeg4-flac": Kind("mkv", {"codec": "mpeg4", "sound_codec": "flac"}),
    "mkv-ffv1-pcm": Kind("mkv", {"codec": "ffv1", **PCM}),
    "webm-vp8-opus": Kind("webm", {"codec": "libvpx", **OPUS}),
    "webm-vp9-opus": Kind("webm", {"codec": "libvpx-vp9", **OPUS}),
    "avi-h264-pcm": Kind("avi", {"codec_options": NO_B, **PCM}),
    "avi-h264-mp3": Kind("avi", {"codec_options": NO_B, **MP3}, 0.5),
    "avi-h264-b-pcm": Kind("avi", PCM),
    "avi-h264-b-mp3": Kind("avi", MP3, 0.5),
    "avi-mpeg4-mp3": Kind("avi", {"codec": "mpeg4", **MP3}, 0.5),
    "avi-mpeg4-b-pcm": Kind("avi", {"codec": "mpeg4", "codec_options": {"bf": "2"}, **PCM}),
    "avi-mjpeg-pcm": Kind("avi", {**MJPEG, **PCM}),
    "ts-h264-aac": Kind("ts"),
    "ts-mpeg2-mp2": Kind("ts", {"codec": "mpeg2video", "sound_codec": "mp2"}),
    "mpg-mpeg2-mp2": Kind("mpg", {"codec": "mpeg2video", "sound_codec": "mp2"}, 0, CONSTANT),  # counts pictures
    "mpg-h264-mp2": Kind("mpg", {"sound_codec": "mp2"}, 0, CONSTANT),
    "mxf-mpeg2-pcm": Kind("mxf", {"codec": "mpeg2video", **PCM, "sound_rate": 48000}, 0, CONSTANT),
    "flv-h264-aac": Kind("flv"),
    "flv-flv1-mp3": Kind("flv", {"codec": "flv", **MP3}),
    "asf-h264-aac": Kind("asf"),
    "asf-wmv2-mp3": Kind("asf", {"codec": "wmv2", **MP3}),
    "nut-h264-pcm": Kind("nut", PCM),
    "nut-mpeg4-mp3": Kind("nut", {"codec": "mpeg4", **MP3}),
    "wtv-mpeg2-mp2": Kind("wtv", {"codec": "mpeg2video", "sound_codec": "mp2"}),
    "ogv-vp8-opus": Kind("ogv", {"codec": "libvpx", **OPUS}, 0, CONSTANT),  # FFmpeg writes no gaps into Ogg
}
SAMPLE = {
    ("mp4-h264-aac", "variable"),
    ("mkv-h264-aac", "29.97"),
    ("webm-vp9-opus", "variable"),
    ("ts-h264-aac", "29.97"),
    ("asf-h264-aac", "variable"),
    ("nut-h264-pcm", "variable"),
    ("avi-mpeg4-b-pcm", "variable"),
    ("avi-h264-pcm", "25"),
    ("avi-h264-pcm", "variable"),
    ("avi-h264-mp3", "25"),
    ("avi-h264-b-pcm", "29.97"),
    ("avi-h264-b-pcm", "variable"),
}


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        pytest.param(kind, rate, id=f"{kind}-{rate}", marks=() if (kind, rate) in SAMPLE else SLOW)
        for kind in KINDS
        for rate in KINDS[kind].rates
    ],
)
def test_pictures_and_sound_keep_their_times(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, rate: str
) -> None:
    given, path = KINDS[kind], tmp_path / f"a.{KINDS[kind].ending}"
    write_truth(path, RATES[rate], **given.options)
    clip = whole_clip(path, caplog)
    tick = float(RATES[rate].tick)
    pictures = statistics.median(picture_offsets(clip, RATES[rate]))
    assert abs(pictures) <= tick + 0.001
    assert max(picture_errors(clip, RATES[rate], pictures)) <= 1
    assert abs(len(clip.times) / FPS - RATES[rate].times[-1] - tick) <= 10 * tick  # how long the last is on show
    for place in PLACES:
        assert sound_offset(clip.audio, place) == pytest.approx(pictures, abs=TOLERANCE + given.clock * tick)


def whole_clip(path: Path, caplog: pytest.LogCaptureFixture) -> Clip:
    """A clip with sound and all planned frames, about which nothing is warned."""
    with caplog.at_level(logging.WARNING, logger="openavs"):
        clip = open_clip(path, fps=FPS)
        assert [frame.index for frame in clip.frames(None)] == list(range(len(clip.times)))
    assert clip.audio is not None and clip.warnings == () and caplog.text == ""
    return clip


# ------------------------------------------------------------------------------------- lengths that cannot be right


class Pipe(io.RawIOBase):
    """A target that cannot go back to the header."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += data
        return len(data)


@pytest.mark.parametrize(
    "options", [{"codec": "mpeg4", **MP3}, {**MJPEG, **PCM}, {"codec_options": NO_B, **PCM}], ids=str
)
def test_an_avi_written_to_a_pipe_has_the_length_of_its_packets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    pipe, path = Pipe(), tmp_path / "a.avi"
    write_truth(pipe, RATES["25"], form="avi", **options)
    assert pipe.data.count((1 << 30).to_bytes(4, "little")) > 1  # what FFmpeg writes for a length it does not know
    path.write_bytes(pipe.data)
    clip = whole_clip(path, caplog)
    assert len(clip.times) == pytest.approx(4 * FPS, abs=1)
    assert clip.audio is not None and clip.audio.duration == pytest.approx(4, abs=0.1)
    assert (probe(path).duration, probe(path).frames) == (pytest.approx(4, abs=0.05), None)
    assert sound_offset(clip.audio, 1.7) == pytest.approx(0, abs=0.03)


def test_an_avi_that_promises_more_pictures_than_it_has_bytes_is_scanned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.avi"
    write_truth(path, RATES["25"], **MJPEG, **PCM)
    data = bytearray(path.read_bytes())
    length = data.index(b"strh") + 8 + 32
    assert data[length : length + 4] == (100).to_bytes(4, "little")
    data[length : length + 4] = (len(data) // 8 + 1).to_bytes(4, "little")
    del data[data.index(b"idx1") :]  # an index would correct it
    path.write_bytes(data)
    assert len(whole_clip(path, caplog).times) == 4 * FPS


# --------------------------------------------------------------------------------- sound whose time stamps disagree


@pytest.mark.parametrize(("speed", "overlap"), [(0.98, 0.1), (0.9, 0.7), (1.02, 0.0)])
@pytest.mark.parametrize(("ending", "codec"), [("mkv", "pcm_s16le"), pytest.param("ts", "aac", marks=SLOW)])
def test_sound_keeps_the_time_of_its_stamps_where_they_overlap(
    tmp_path: Path, ending: str, codec: str, speed: float, overlap: float
) -> None:
    path = tmp_path / f"a.{ending}"
    write_truth(path, constant(Fraction(25), 8), sound_codec=codec, sound_seconds=8, sound_speed=speed)
    clip = open_clip(path)
    assert clip.audio is not None
    for place in (0.1, 1.7, 3.4, 6.5, 7.4):
        off = sound_offset(clip.audio, place, lead=place * (1 - speed), seconds=8, part=0.1)
        assert abs(off) <= SLACK + TOLERANCE
    assert clip.audio.duration == pytest.approx(8 * speed, abs=SLACK + 0.05)
    said = f"the time stamps of the sound of a.{ending} overlap by {overlap:.1f}"
    assert [warning.startswith(said) for warning in clip.warnings] == ([True] if overlap else [])


def test_joined_streams_whose_time_stamps_restart_keep_all_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    write_truth(path, RATES["25"])
    path.write_bytes(2 * path.read_bytes())
    clip = open_clip(path)
    assert clip.audio is not None and clip.warnings == ()
    assert clip.audio.duration == pytest.approx(8, abs=0.2)
    for place in PLACES:
        assert sound_offset(clip.audio, place, lead=-4.0) == pytest.approx(0, abs=0.1)  # ends of AAC blocks between


def test_one_time_stamp_that_falls_back_moves_no_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.flv"
    write_truth(path, RATES["25"])
    data, at, audio = bytearray(path.read_bytes()), 13, []
    while at < len(data):
        audio += [at] if data[at] == 8 else []
        at += 15 + int.from_bytes(data[at + 1 : at + 4])
    damaged = audio[len(audio) // 2]
    assert int.from_bytes(data[damaged + 4 : damaged + 7]) > 1900  # ms
    data[damaged + 4 : damaged + 7] = bytes(3)
    path.write_bytes(data)
    clip = open_clip(path)
    assert clip.audio is not None and clip.warnings == ()
    for place in PLACES:
        assert sound_offset(clip.audio, place) == pytest.approx(0, abs=TOLERANCE)


# ---------------------------------------------------------------------------- warnings, only where something is lost


@pytest.mark.parametrize(
    "ending", ["mp4", "asf", "mkv", pytest.param("mov", marks=SLOW), pytest.param("ts", marks=SLOW)]
)
def test_pictures_that_begin_after_the_sound_are_not_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    codecs = {"codec": "wmv2"} if ending == "asf" else {}
    write_truth(path, RATES["25"], picture_start=1.52, sound_seconds=5.5, **codecs)
    clip = whole_clip(path, caplog)
    assert len(clip.times) == 4 * FPS
    assert sound_offset(clip.audio, 3.4, lead=1.52, seconds=5.5) == pytest.approx(0, abs=TOLERANCE)


@pytest.mark.parametrize(("shown", "first"), [((0.0, 2.52), 0), ((1.0, 2.52), 25)], ids=["end", "both"])
def test_edit_lists_that_cut_pictures_are_not_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shown: tuple[float, float], first: int
) -> None:
    path = tmp_path / "a.mp4"
    write_truth(path, RATES["25"], picture_start=1.52, sound_seconds=5.5)
    data = bytearray(path.read_bytes())
    edits = data.index(b"elst") + 12
    length, begin = struct.unpack_from(">Ii", data, edits + 12)
    assert struct.unpack_from(">Ii", data, edits) == (1520, -1) and length == 4000  # empty, then all of it
    struct.pack_into(">Ii", data, edits + 12, round(shown[1] * 1000), begin + round(shown[0] * 12800))
    path.write_bytes(data)
    clip = whole_clip(path, caplog)
    assert len(clip.times) == round(shown[1] * FPS)
    ticks = RATES["25"].ticks[: len(RATES["25"].ticks) - first]
    numbers = picture_errors(clip, Rate(Fraction(1, 25), ticks))
    assert {abs(number - first) <= 1 for number in numbers} == {True}
    assert sound_offset(clip.audio, 3.4, lead=1.52, seconds=5.5) == pytest.approx(0, abs=TOLERANCE)


@pytest.mark.parametrize("ending", ["flv", "asf", "nut", pytest.param("wtv", marks=SLOW), "mkv"])
def test_sound_that_is_longer_than_the_pictures_is_not_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    codecs = {"codec": "mpeg2video", "sound_codec": "mp2"} if ending == "wtv" else {}
    path = tmp_path / f"a.{ending}"
    write_truth(path, RATES["25"], sound_seconds=6.0, **codecs)
    clip = whole_clip(path, caplog)
    assert len(clip.times) == 4 * FPS
    assert clip.audio is not None and clip.audio.duration == pytest.approx(6, abs=0.1)


@pytest.mark.parametrize(("ending", "codec"), [("mp4", "mpeg4"), ("flv", "flv"), ("mkv", "mpeg4")])
def test_a_file_that_is_cut_short_is_said_though_its_pictures_begin_late(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str, codec: str
) -> None:
    path = tmp_path / f"a.{ending}"
    options = {"movflags": "+faststart"} if ending == "mp4" else {}
    write_truth(path, RATES["25"], picture_start=1.52, sound_seconds=5.5, options=options, codec=codec)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with caplog.at_level(logging.WARNING, logger="openavs"):
        clip = open_clip(path, fps=FPS)
        got = len(list(clip.frames(None)))
    assert 4 < got < 40 and len(clip.times) >= 4 * FPS
    assert f"{len(clip.times) - got} planned frames are missing (truncated or damaged)" in caplog.text
    if ending == "mp4":  # the others have no length of the sound
        assert any("of 5.5" in warning and "truncated" in warning for warning in clip.warnings)


def test_time_stamps_that_jump_ahead_in_a_transport_stream_are_said(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.mkv", tmp_path / "a.ts"
    write_truth(plain, RATES["25"], codec_options=NO_B)
    with av.open(str(plain)) as given, av.open(str(path), "w") as container:
        streams = {stream.index: container.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.dts is None or packet.pts is None:
                continue
            if packet.dts * packet.time_base >= 2:
                packet.pts += round(46 / packet.time_base)
                packet.dts += round(46 / packet.time_base)
            packet.stream = streams[packet.stream.index]
            container.mux(packet)
    clip = open_clip(path)
    assert len(clip.times) == 50
    assert [warning.split(";")[0] for warning in clip.warnings] == [
        "the time stamps of a.ts jump ahead by 46 s at 1.96 s"
    ]
