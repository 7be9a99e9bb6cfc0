"""Sound: mono float32 at its own rate, aligned to the pictures, on disk when long."""

from __future__ import annotations

import re
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from openavs.errors import InputError
from openavs.media import audio as sound
from openavs.media.audio import read_audio, resample, write_wav
from openavs.media.clip import open_clip
from openavs.media.limits import MediaLimits
from openavs.structures.types import Waveform
from tests.media_files import gray, make_media, tone


def onset(waveform: Waveform) -> float:
    """When a tone begins, in s."""
    return float(np.argmax(np.abs(waveform.samples) > 0.05)) / waveform.rate


def on_disk(samples: Any) -> bool:
    """Whether samples are a view of a memory map."""
    while isinstance(samples, np.ndarray) and not isinstance(samples, np.memmap):
        samples = samples.base
    return isinstance(samples, np.memmap)


@pytest.mark.parametrize(
    ("name", "codec", "tolerance"),
    [
        ("a.wav", "pcm_s16le", 1e-3),
        ("a.wav", "pcm_u8", 1e-2),
        ("a.wav", "pcm_s24le", 1e-3),
        ("a.wav", "pcm_f32le", 1e-6),
        ("a.flac", "flac", 1e-3),
        ("a.mp3", "libmp3lame", 0.05),
        ("a.ogg", "libopus", 0.05),
        ("a.m4a", "aac", 0.05),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_files_are_decoded_at_their_own_rate(
    tmp_path: Path, name: str, codec: str, tolerance: float, channels: int
) -> None:
    rate = 48000
    given = tone(1.0, rate, channels=channels)
    path = make_media(tmp_path / name, sound=given, rate=rate, sound_codec=codec)
    heard = read_audio(path)
    assert heard is not None and heard.rate == rate and heard.samples.dtype == np.float32
    assert heard.duration == pytest.approx(1.0, abs=0.06)
    middle = slice(rate // 4, rate // 2)
    assert np.std(heard.samples[middle]) == pytest.approx(np.std(given[0, middle]), rel=max(tolerance, 1e-3))
    if tolerance < 0.05:
        assert np.abs(heard.samples - given[0][: len(heard.samples)]).max() < tolerance


def test_mono_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    left = np.stack([tone(0.5)[0], np.zeros(22050, np.float32)])
    path = make_media(tmp_path / "a.wav", sound=left, sound_codec="pcm_f32le")
    heard = read_audio(path)
    assert heard is not None
    np.testing.assert_allclose(heard.samples, left.mean(0), atol=1e-7)


def test_many_channels_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "sixteen.mka"
    channels = np.zeros((48000, 16), np.float32)
    channels[:, 3] = 16 * tone(1.0, 48000, level=0.05)[0]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=48000, layout="hexadecagonal", options={"mapping_family": "255"})
        for start in range(0, 48000, 960):
            part = channels[start : start + 960].reshape(1, -1)
            piece = av.AudioFrame.from_ndarray(part, format="flt", layout="hexadecagonal")
            piece.sample_rate, piece.pts, piece.time_base = 48000, start, Fraction(1, 48000)
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    heard = read_audio(path)
    assert heard is not None
    assert heard.dbfs == pytest.approx(Waveform(tone(1.0, 48000, level=0.05)[0], 48000).dbfs, abs=0.5)


def test_a_time_stamp_far_beyond_the_end_makes_no_hours_of_silence(tmp_path: Path) -> None:
    path = tmp_path / "jump.mka"
    with av.open(str(path), "w", options={"live": "1"}) as container:  # a live stream's header promises no length
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for start in (0, 8000, 8000 * 3600 * 20):
            piece = av.AudioFrame.from_ndarray(tone(1.0, 8000), format="flt", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = 8000, start, Fraction(1, 8000)
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    heard = read_audio(path)
    assert heard is not None and heard.duration == pytest.approx(3.0)


def test_a_video_without_sound_has_none(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4", [gray(0)] * 10)
    assert read_audio(path) is None and open_clip(path).audio is None


@pytest.mark.parametrize("start", [0.0, 0.7])
def test_sound_keeps_its_place_beside_the_pictures(tmp_path: Path, start: float) -> None:
    silence_then_tone = np.concatenate([np.zeros((1, 22050), np.float32), tone(1.5)], axis=1)
    path = make_media(tmp_path / "a.mkv", [gray(i) for i in range(30)], sound=silence_then_tone, sound_start=start)
    clip = open_clip(path)
    assert clip.audio is not None
    assert onset(clip.audio) == pytest.approx(0.5 + start, abs=0.03)


def test_pictures_that_begin_later_than_the_sound_cut_it(tmp_path: Path) -> None:
    silence_then_tone = np.concatenate([np.zeros((1, 2 * 44100), np.float32), tone(1.0)], axis=1)
    times = [1.25 + i / 10 for i in range(17)]
    path = make_media(tmp_path / "a.mkv", [gray(i) for i in range(17)], times=times, sound=silence_then_tone)
    clip = open_clip(path)
    assert clip.audio is not None
    assert onset(clip.audio) == pytest.approx(0.75, abs=0.03)
    assert clip.audio.duration == pytest.approx(1.75, abs=0.05)
    assert len(clip.times) == 2


def test_a_separate_file_takes_the_place_of_the_sound(tmp_path: Path) -> None:
    video = make_media(tmp_path / "a.mp4", [gray(0)] * 20, sound=tone(2))
    beside = make_media(tmp_path / "b.flac", sound=tone(1, 16000, level=0.5), rate=16000, sound_codec="flac")
    clip = open_clip(video, audio=beside)
    assert clip.audio is not None and clip.audio.rate == 16000
    assert clip.audio.duration == pytest.approx(1.0)
    assert clip.audio.dbfs == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.05)


def test_long_sound_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_media(tmp_path / "a.wav", sound=tone(3), sound_codec="pcm_s16le")
    short = read_audio(path)
    monkeypatch.setattr(sound, "IN_MEMORY", 100_000)
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    long = read_audio(path)
    assert short is not None and long is not None
    assert on_disk(long.samples) and not on_disk(short.samples)
    assert list(folder.iterdir()) == []  # unlinked: nothing stays behind
    np.testing.assert_array_equal(short.samples, long.samples)
    np.testing.assert_array_equal(resample(short, 16000).samples, resample(long, 16000).samples)


def test_a_gap_in_long_sound_is_silence_that_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "IN_MEMORY", 400)
    spool = sound.AudioBuffer()
    for part in (np.ones(200), np.ones(10)):  # the second goes to the disk
        spool.write(part.astype(np.float32))
    spool.pad(1000)
    spool.write(np.ones(5, dtype=np.float32))
    samples = spool.close()[:, 0]
    assert on_disk(samples)
    assert np.flatnonzero(samples).tolist() == [*range(210), *range(1210, 1215)]


@pytest.mark.parametrize("memory", [100, 10**6], ids=["disk", "memory"])
def test_trimmed_samples_are_replaced_by_the_next(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(sound, "IN_MEMORY", memory)
    spool = sound.AudioBuffer()
    for part in (np.ones(200), np.full(100, 2.0)):
        spool.write(part.astype(np.float32))
    spool.pad(50)
    spool.trim(120)
    spool.write(np.full(10, 3.0, np.float32))
    samples = spool.close()[:, 0]
    assert on_disk(samples) == (memory == 100)
    assert samples.tolist() == [1.0] * 200 + [2.0] * 30 + [3.0] * 10


def test_a_rate_that_changes_within_a_stream_changes_no_pitch(tmp_path: Path) -> None:
    parts = [
        make_media(tmp_path / f"{rate}.mp3", sound=tone(1, rate), rate=rate, sound_codec="libmp3lame")
        for rate in (44100, 22050)
    ]
    path = tmp_path / "both.mp3"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    heard = read_audio(path)
    assert heard is not None and heard.duration == pytest.approx(2.0, abs=0.1)
    for start in (0.2, 1.2):
        spectrum = np.abs(np.fft.rfft(heard.cut(start, start + 0.5).samples))
        assert int(spectrum.argmax()) / 0.5 == pytest.approx(440, abs=4)


def test_sound_that_is_longer_than_its_header_says_meets_the_limit(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.flac", sound=tone(3, 8000), rate=8000, sound_codec="flac")
    data = bytearray(path.read_bytes())
    data[22:26] = (8000).to_bytes(4)  # of 24,000 samples
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"the sound of .*a\.flac is longer than the limit of 2 s; cut it"):
        read_audio(path, limits=MediaLimits(max_duration=2))


def test_samples_of_64_bits(tmp_path: Path) -> None:
    heard = read_audio(make_media(tmp_path / "a.wav", sound=tone(1, 8000), rate=8000, sound_codec="pcm_s64le"))
    assert heard is not None and heard.rate == 8000
    assert heard.dbfs == pytest.approx(Waveform(tone(1, 8000)[0], 8000).dbfs, abs=0.01)


@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        (slice(20, 24), r"\d+ packets of the sound of a\.mkv damaged and skipped"),
        (slice(None), r"the sound track of a\.mkv could not be decoded"),
    ],
)
def test_sound_that_is_damaged_is_said(tmp_path: Path, damaged: slice, said: str) -> None:
    path = make_media(tmp_path / "a.mkv", [gray(i) for i in range(20)], sound=tone(2))
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(audio=0) if packet.size > 8]
    data = path.read_bytes()
    for packet in packets[damaged]:
        data = data.replace(packet, b"\xff" * len(packet))
    path.write_bytes(data)
    clip = open_clip(path)
    assert (clip.audio is None) == (damaged == slice(None))
    assert re.fullmatch(said, "".join(clip.warnings))


def test_nan_and_infinite_samples_are_refused(tmp_path: Path) -> None:
    for bad in (np.nan, np.inf):
        samples = tone(0.5)
        samples[0, 1000] = bad
        path = make_media(tmp_path / "a.wav", sound=samples, sound_codec="pcm_f32le")
        with pytest.raises(InputError, match="NaN or infinite"):
            read_audio(path)


def test_overshooting_samples_are_clipped(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.wav", sound=tone(0.5, level=1.5), sound_codec="pcm_f32le")
    heard = read_audio(path)
    assert heard is not None and float(np.abs(heard.samples).max()) == 1.0


def test_silent_sound_is_sound(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4", [gray(0)] * 10, sound=np.zeros((1, 44100), np.float32))
    clip = open_clip(path)
    assert clip.audio is not None and clip.audio.dbfs < -90


def test_resampling_keeps_length_level_and_pitch() -> None:
    given = Waveform(tone(2.0, 44100)[0], 44100)
    for rate in (16000, 48000):
        got = resample(given, rate)
        assert got.rate == rate and got.samples.dtype == np.float32
        assert abs(got.duration - given.duration) <= 1 / rate
        assert got.dbfs == pytest.approx(given.dbfs, abs=0.01)
        spectrum = np.abs(np.fft.rfft(got.samples))
        assert np.argmax(spectrum) / got.duration == pytest.approx(440, abs=1)
    assert resample(given, 44100) is given
    assert len(resample(Waveform(np.zeros(0, np.float32), 44100), 16000).samples) == 0
    with pytest.raises(InputError):
        resample(given, 0)


def test_wav_files_are_16_bit_mono_and_read_back(tmp_path: Path) -> None:
    given = Waveform(tone(1.0, 16000, level=1.0)[0], 16000)
    write_wav(tmp_path / "new" / "a.wav", given)
    with wave.open(str(tmp_path / "new" / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
    back = read_audio(tmp_path / "new" / "a.wav")
    assert back is not None
    np.testing.assert_allclose(back.samples, given.samples, atol=1e-4)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.wav"]


def test_sound_that_lasts_longer_than_its_header_says_stops_at_the_limit(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp3", sound=tone(3), sound_codec="libmp3lame", options={"write_xing": "0"})
    with pytest.raises(InputError):
        read_audio(path, limits=MediaLimits(max_duration=1.0))
