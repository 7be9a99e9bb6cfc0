"""Writing: videos that play anywhere, overlays that keep the frame times and the sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.media.audio import read_audio
from openavs.media.clip import open_clip, probe
from openavs.media.encode import write_video
from openavs.media.remux import copy_streams, write_overlay, write_player_video
from openavs.structures.types import Clip, Frame, ImageArray, Waveform
from tests.media_files import corner_names, corners, gray, make_media, tone, which


def same(time: float, image: ImageArray) -> ImageArray:
    return image


def frame_times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [round(frame.time, 3) for frame in container.decode(video=0)]


def decoded(path: Path) -> list[ImageArray]:
    with av.open(str(path)) as container:
        return [np.asarray(frame.to_ndarray(format="yuv420p"), np.uint8) for frame in container.decode(video=0)]


def sounds_alike(path: Path, source: Path | Waveform, level: float = 0.1) -> None:
    heard, given = read_audio(path), source if isinstance(source, Waveform) else read_audio(source)
    assert heard is not None and given is not None
    assert heard.duration == pytest.approx(given.duration, abs=0.05)
    assert heard.dbfs == pytest.approx(given.dbfs, abs=level)


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (1, 1), (31, 64)])
def test_a_written_video_reads_back(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, (gray(i, size) for i in range(20)), 10, Waveform(tone(2)[0], 44100))
    info = probe(path)
    assert (info.video_codec, info.audio_codec, info.fps) == ("h264", "aac", 10.0)
    assert info.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert info.duration == pytest.approx(2.0, abs=0.01)
    assert [which(frame.image) for frame in open_clip(path, fps=10).frames(None)] == list(range(20))
    sounds_alike(path, Waveform(tone(2)[0], 44100))
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_colors_survive(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [corners((96, 128))] * 5, 5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range, frame.format.name) == (1, 1, "yuv420p")
    (frame,) = open_clip(tmp_path / "a.mp4").frames(None)
    assert np.abs(frame.image[10, 10].astype(int) - [250, 0, 0]).max() < 8
    assert np.abs(frame.image[10, -10].astype(int) - [0, 250, 0]).max() < 8


@pytest.mark.parametrize("rate", [8000, 16000, 44056, 192000])
def test_any_rate_of_sound_can_be_written(tmp_path: Path, rate: int) -> None:
    given = Waveform(tone(1.5, rate)[0], rate)
    write_video(tmp_path / "a.mp4", [gray(0)] * 15, 10, given)
    sounds_alike(tmp_path / "a.mp4", given, level=0.2)


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path) -> None:
    def broken() -> Iterator[ImageArray]:
        yield gray(0)
        raise RuntimeError("the painter failed")

    (tmp_path / "a.mp4").write_text("an older file")
    with pytest.raises(RuntimeError, match="painter"):
        write_video(tmp_path / "a.mp4", broken(), 10)
    assert (tmp_path / "a.mp4").read_text() == "an older file"
    with pytest.raises(InputError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], 10)
    with pytest.raises(InputError, match="like the first one"):
        write_video(tmp_path / "a.mp4", [gray(0), gray(0, (50, 50))], 10)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


# ---------------------------------------------------------------------------------------------------- overlays


@pytest.mark.parametrize(
    ("name", "codec", "kept"),
    [
        ("a.mp4", "aac", "aac"),
        ("a.mkv", "aac", "aac"),
        ("a.mkv", "libmp3lame", "mp3"),
        ("a.webm", "libopus", "opus"),
        ("a.mkv", "flac", "aac"),
        ("a.avi", "pcm_s16le", "aac"),
        ("a.ts", "aac", "aac"),
        ("a.mov", "pcm_s16le", "aac"),
    ],
)
def test_an_overlay_keeps_the_sound(tmp_path: Path, name: str, codec: str, kept: str) -> None:
    video = {"a.webm": "libvpx", "a.avi": "mpeg4"}.get(name, "libx264")
    source = make_media(
        tmp_path / name, [gray(i) for i in range(20)], codec=video, sound=tone(2, 48000), rate=48000, sound_codec=codec
    )
    seen: list[float] = []

    def paint(time: float, image: ImageArray) -> ImageArray:
        seen.append(time)
        return 255 - image

    write_overlay(tmp_path / "o.mp4", source, paint)
    assert seen == pytest.approx([i / 10 for i in range(20)], abs=2e-3)
    assert probe(tmp_path / "o.mp4").audio_codec == kept
    sounds_alike(tmp_path / "o.mp4", source)
    (first,) = open_clip(tmp_path / "o.mp4", fps=0.5).frames(None)
    assert abs(float(first.image.mean()) - (255 - gray(10).mean())) < 4


def test_copied_sound_is_the_same_to_the_sample(tmp_path: Path) -> None:
    source = make_media(tmp_path / "a.mp4", [gray(i) for i in range(20)], sound=tone(2, channels=2))
    write_overlay(tmp_path / "o.mp4", source, same)
    before, after = read_audio(source), read_audio(tmp_path / "o.mp4")
    assert before is not None and after is not None
    np.testing.assert_array_equal(before.samples, after.samples)


def test_stereo_stays_stereo_when_encoded_again(tmp_path: Path) -> None:
    left = np.stack([tone(2)[0], np.zeros(88200, np.float32)])
    source = make_media(tmp_path / "a.mov", [gray(0)] * 20, sound=left, sound_codec="pcm_s16le")
    write_overlay(tmp_path / "o.mp4", source, same)
    assert probe(tmp_path / "o.mp4").audio_channels == 2
    sounds_alike(tmp_path / "o.mp4", source, level=0.3)


def test_an_overlay_keeps_the_time_of_every_frame(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 0.5, 1.3, 1.4, 2.0]
    source = make_media(tmp_path / "vfr.mkv", [gray(i) for i in range(7)], times=times)
    write_overlay(tmp_path / "o.mp4", source, same)
    assert frame_times(tmp_path / "o.mp4") == times


@pytest.mark.parametrize("start", [-0.6, 0.6])
def test_an_overlay_keeps_sound_and_pictures_together(tmp_path: Path, start: float) -> None:
    sound = np.concatenate([np.zeros((1, 44100), np.float32), tone(1.0)], axis=1)
    times = [max(-start, 0) + i / 10 for i in range(20)]
    source = make_media(
        tmp_path / "a.mkv", [gray(i) for i in range(20)], times=times, sound=sound, sound_start=max(start, 0)
    )
    write_overlay(tmp_path / "o.mp4", source, same)
    before, after = open_clip(source).audio, open_clip(tmp_path / "o.mp4").audio
    assert before is not None and after is not None
    begins = [float(np.argmax(np.abs(wave.samples) > 0.05)) / wave.rate for wave in (before, after)]
    assert begins[0] == pytest.approx(1.0 + start, abs=0.03)
    assert begins[1] == pytest.approx(begins[0], abs=0.01)
    assert frame_times(tmp_path / "o.mp4")[0] == 0.0


def test_a_rotated_source_is_painted_and_written_upright(tmp_path: Path) -> None:
    source = make_media(tmp_path / "r.mp4", [corners()] * 5, rotation=90)
    shapes = []

    def paint(time: float, image: ImageArray) -> ImageArray:
        shapes.append(image.shape)
        return image

    write_overlay(tmp_path / "o.mp4", source, paint)
    (frame,) = open_clip(tmp_path / "o.mp4").frames(None)
    assert set(shapes) == {(64, 48, 3)}
    assert corner_names(frame.image) == "GKRB"


@pytest.mark.parametrize(
    ("name", "codec", "sound_codec"),
    [("a.mp4", "libx264", "aac"), ("a.mov", "libx264", None), ("a.webm", "libvpx-vp9", "libopus")],
)
def test_streams_that_browsers_play_are_copied(tmp_path: Path, name: str, codec: str, sound_codec: str | None) -> None:
    times = [0.0, 0.1, 0.2, 0.5, 1.3, 1.4, 2.0]
    sound = None if sound_codec is None else tone(2, 48000)
    pictures = [gray(i) for i in range(7)]
    source = make_media(
        tmp_path / name, pictures, times=times, codec=codec, sound=sound, rate=48000, sound_codec=sound_codec or ""
    )
    assert copy_streams(tmp_path / "o.mp4", open_clip(source))
    for before, after in zip(decoded(source), decoded(tmp_path / "o.mp4"), strict=True):
        np.testing.assert_array_equal(before, after)
    assert frame_times(tmp_path / "o.mp4") == times
    if sound_codec is not None:
        sounds_alike(tmp_path / "o.mp4", source)


def test_a_copied_video_begins_with_its_first_frame(tmp_path: Path) -> None:
    times = [0.6 + i / 10 for i in range(20)]
    source = make_media(tmp_path / "a.mp4", [gray(i) for i in range(20)], times=times, sound=tone(2), sound_start=0.6)
    assert copy_streams(tmp_path / "o.mp4", open_clip(source))
    assert frame_times(tmp_path / "o.mp4") == pytest.approx([i / 10 for i in range(20)], abs=2e-3)
    sounds_alike(tmp_path / "o.mp4", source)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_copied_video_keeps_its_rotation(tmp_path: Path, rotation: int) -> None:
    source = make_media(tmp_path / "r.mp4", [corners()] * 5, rotation=rotation)
    assert copy_streams(tmp_path / "o.mp4", open_clip(source))
    (before,), (after,) = open_clip(source).frames(None), open_clip(tmp_path / "o.mp4").frames(None)
    np.testing.assert_array_equal(before.image, after.image)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("a.avi", {"codec": "mpeg4"}),
        ("a.mp4", {"codec": "mpeg4"}),
        ("a.ts", {}),
        ("a.mkv", {}),  # the first packets have no decoding time
        ("a.mp4", {"pix_fmt": "yuv444p"}),
        ("a.mp4", {"pix_fmt": "yuv420p10le"}),
        ("a.mov", {"sound": tone(1), "sound_codec": "pcm_s16le"}),
        ("a.mp4", {"matrix": [-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30]}),
        ("a.mp4", {"pictures": [gray(0, (48, 1930))] * 10}),
    ],
)
def test_other_streams_are_encoded_for_players(tmp_path: Path, name: str, given: dict[str, Any]) -> None:
    source = make_media(tmp_path / name, **{"pictures": [gray(i) for i in range(10)], **given})
    assert not copy_streams(tmp_path / "o.mp4", open_clip(source))
    assert not (tmp_path / "o.mp4").exists()
    write_player_video(tmp_path / "o.mp4", open_clip(source))
    assert max(probe(tmp_path / "o.mp4").size or ()) <= 960
    with av.open(str(tmp_path / "o.mp4")) as container:
        frames = list(container.decode(video=0))
        assert (frames[0].format.name, len(frames)) == ("yuv420p", 10)
        assert [stream.codec_context.name for stream in container.streams.audio] == ["aac"] * ("sound" in given)


def test_a_truncated_video_is_not_copied(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(40)]
    whole = make_media(tmp_path / "a.mp4", pictures, options={"movflags": "+faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write_player_video(tmp_path / "o.mp4", open_clip(cut))
    with av.open(str(tmp_path / "o.mp4")) as container:  # every packet is whole
        assert 5 < sum(1 for _ in container.decode(video=0)) < 35


@pytest.mark.parametrize("sound_codec", ["aac", "pcm_s16le"])
def test_one_pass_writes_the_overlay_and_the_plain_video(tmp_path: Path, sound_codec: str) -> None:
    pictures = [gray(i, (48, 1000)) for i in range(20)]
    source = make_media(tmp_path / "a.mov", pictures, sound=tone(2), sound_codec=sound_codec)
    painted: list[float] = []

    def paint(time: float, image: ImageArray) -> ImageArray:
        painted.append(time)
        return 255 - image

    write_overlay(tmp_path / "o.mp4", open_clip(source), paint, plain=tmp_path / "plain.mp4")
    assert len(painted) == 20
    for name, width in (("o.mp4", 1000), ("plain.mp4", 960)):
        assert probe(tmp_path / name).size == (48 if width == 1000 else 46, width)
        assert frame_times(tmp_path / name) == frame_times(source)
        sounds_alike(tmp_path / name, source, level=0.3)
    overlay, plain = (next(open_clip(tmp_path / name).frames(None)).image for name in ("o.mp4", "plain.mp4"))
    assert abs(float(overlay.mean() + plain.mean()) - 255) < 4


def test_large_pictures_are_scaled_down(tmp_path: Path) -> None:
    source = make_media(tmp_path / "a.mp4", [corners((300, 500))] * 3)
    write_overlay(tmp_path / "o.mp4", source, same, size_limit=200)
    assert probe(tmp_path / "o.mp4").size == (120, 200)
    write_overlay(tmp_path / "o.mp4", source, same, size_limit=None)
    assert probe(tmp_path / "o.mp4").size == (300, 500)


def test_pictures_become_a_slideshow_with_sound(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(gray(i, (47, 63))).save(folder / f"{i}.png")
    wav = make_media(tmp_path / "a.wav", sound=tone(4, 16000), rate=16000, sound_codec="pcm_s16le")
    clip = open_clip(folder, audio=wav)
    seen: list[float] = []

    def paint(time: float, image: ImageArray) -> ImageArray:
        seen.append(time)
        return image

    write_overlay(tmp_path / "o.mp4", clip, paint)
    assert seen == [0.5, 1.5, 2.5, 3.5]
    assert frame_times(tmp_path / "o.mp4") == [0.0, 1.0, 2.0, 3.0]
    assert probe(tmp_path / "o.mp4").duration == pytest.approx(4.0, abs=0.01)
    sounds_alike(tmp_path / "o.mp4", wav)


def test_a_folder_of_pictures_becomes_a_slideshow(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(gray(i)).save(folder / f"{i}.png")
    write_overlay(tmp_path / "o.mp4", folder, same)
    assert frame_times(tmp_path / "o.mp4") == [0.0, 1.0, 2.0]
    assert [which(frame.image) for frame in open_clip(tmp_path / "o.mp4", fps=1).frames(None)] == [0, 1, 2]


def test_a_video_without_one_picture_gives_no_overlay(tmp_path: Path) -> None:
    source = make_media(tmp_path / "a.mp4", [gray(i) for i in range(10)], options={"movflags": "+faststart"})
    data = source.read_bytes()
    pictures = data.index(b"mdat") + 4
    source.write_bytes(data[:pictures] + bytes(len(data) - pictures))
    with pytest.raises(InputError, match=r"no frame of .*a\.mp4 can be decoded; it is damaged or empty"):
        write_overlay(tmp_path / "o.mp4", source, same)
    assert not (tmp_path / "o.mp4").exists()


def test_a_clip_made_in_memory_becomes_a_slideshow(tmp_path: Path) -> None:
    def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
        for i in (0, 2):  # the second one is missing
            yield Frame(i, (i + 0.5) / 2, gray(i))

    clip = Clip("x", (0.25, 0.75, 1.25), 2.0, (48, 64), frames, Waveform(tone(1.5)[0], 44100))
    write_overlay(tmp_path / "o.mp4", clip, same)
    assert frame_times(tmp_path / "o.mp4") == [0.0, 1.0]
    assert clip.audio is not None
    sounds_alike(tmp_path / "o.mp4", clip.audio)


def test_a_clip_with_separate_sound_keeps_that_sound(tmp_path: Path) -> None:
    video = make_media(tmp_path / "a.mp4", [gray(i) for i in range(20)], sound=tone(2, level=0.8))
    quiet = make_media(tmp_path / "q.wav", sound=tone(2, level=0.05), sound_codec="pcm_s16le")
    write_overlay(tmp_path / "o.mp4", open_clip(video, audio=quiet), same)
    sounds_alike(tmp_path / "o.mp4", quiet)
    assert len(frame_times(tmp_path / "o.mp4")) == 20


def test_a_truncated_source_gives_a_shorter_overlay(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(40)]
    whole = make_media(tmp_path / "a.mp4", pictures, sound=tone(4), options={"movflags": "+faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write_overlay(tmp_path / "o.mp4", cut, same)
    assert 5 < len(frame_times(tmp_path / "o.mp4")) < 35


def test_sound_that_mp4_does_not_take_is_encoded_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = make_media(tmp_path / "a.mp4", [gray(i) for i in range(20)], sound=tone(2))
    data = bytearray(source.read_bytes())
    table = data.rindex(b"stts")  # of the sound: its last entry gives the last packet's length
    entries = int.from_bytes(data[table + 8 : table + 12])
    data[table + 8 + 8 * entries : table + 12 + 8 * entries] = (3_003_122_432).to_bytes(4)
    source.write_bytes(data)
    write_overlay(tmp_path / "o.mp4", source, same)
    assert "it is encoded" in caplog.text
    sounds_alike(tmp_path / "o.mp4", source)
