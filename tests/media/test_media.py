"""Opening videos: which picture is on show when, whichever container, rate, turn and start."""

from __future__ import annotations

import gc
import logging
import tracemalloc
import weakref
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.media.clip import open_clip, open_images, planned_times, probe
from openavs.media.limits import MediaLimits
from openavs.structures.types import Clip
from tests.media_files import corner_names, corners, gray, make_media, tone, which


def shown(clip: Clip, wanted: frozenset[int] | None = None) -> list[tuple[int, float, int]]:
    return [(frame.index, frame.time, which(frame.image)) for frame in clip.frames(wanted)]


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "libx264", "yuv420p"),
        ("a.mkv", "libx264", "yuv420p"),
        ("a.webm", "libvpx", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.ts", "libx264", "yuv420p"),
        ("a.mpg", "mpeg2video", "yuv420p"),
        ("a.flv", "flv1", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
        ("a.h264", "libx264", "yuv420p"),
    ],
)
def test_every_common_container_gives_the_picture_on_show(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    fps = 25 if name.endswith(("mpg", "h264")) else 10
    path = make_media(tmp_path / name, [gray(i) for i in range(30)], fps=fps, codec=codec, pix_fmt=pix_fmt)
    clip = open_clip(path, fps=fps / 10)
    assert clip.size == (48, 64)
    got = shown(clip)
    assert [(index, time) for index, time, _ in got] == list(enumerate(clip.times))
    assert [frame for *_, frame in got] == [5, 15, 25]
    assert clip.audio is None


def test_sampling_goes_by_time_stamps_not_by_counting(tmp_path: Path) -> None:
    # Frames crowd at the beginning; counting them at the average rate would show later ones.
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 1.2, 2.6, 2.7]
    path = make_media(tmp_path / "vfr.mkv", [gray(i) for i in range(8)], times=times)
    assert shown(open_clip(path)) == [(0, 0.5, 4), (1, 1.5, 5), (2, 2.5, 5)]


def test_a_frame_is_on_show_from_its_very_time_stamp(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4", [gray(i) for i in range(4)], fps=2)
    assert shown(open_clip(path, fps=1)) == [(0, 0.5, 1), (1, 1.5, 3)]


def test_sampling_faster_than_the_video_repeats_its_pictures(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4", [gray(i) for i in range(3)], fps=1)
    assert [frame for *_, frame in shown(open_clip(path, fps=2))] == [0, 0, 1, 1, 2, 2]


def test_only_wanted_frames_are_yielded(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4", [gray(i) for i in range(30)])
    clip = open_clip(path, fps=10)
    assert shown(clip, frozenset({3, 17})) == [(3, pytest.approx(0.35), 3), (17, pytest.approx(1.75), 17)]
    assert shown(clip, frozenset()) == []
    assert len(shown(clip)) == 30  # a source can be read again


def test_planned_times_are_the_middles_of_the_intervals() -> None:
    assert planned_times(5.0, 1.0) == (0.5, 1.5, 2.5, 3.5, 4.5)
    assert planned_times(5.4, 1.0)[-1] == 4.5  # at 5.5 nothing is on show any more
    assert planned_times(5.6, 1.0)[-1] == 5.5
    assert planned_times(0.0, 1.0) == (0.5,)


@pytest.mark.parametrize(
    ("rotation", "names"), [(0, "RGBK"), (90, "GKRB"), (180, "KBGR"), (-90, "BRKG")]
)  # counterclockwise, as the display matrix has it
def test_rotated_videos_come_upright(tmp_path: Path, rotation: int, names: str) -> None:
    path = make_media(tmp_path / "r.mp4", [corners()] * 10, rotation=rotation)
    clip = open_clip(path)
    (frame,) = clip.frames(None)
    assert clip.size == probe(path).size == frame.image.shape[:2] == ((64, 48) if rotation % 180 else (48, 64))
    assert corner_names(frame.image) == names


def test_mirrored_videos_come_upright(tmp_path: Path) -> None:
    one = 1 << 16
    path = make_media(tmp_path / "m.mp4", [corners()] * 10, matrix=[-one, 0, 0, 0, one, 0, 0, 0, 1 << 30])
    (frame,) = open_clip(path).frames(None)
    assert corner_names(frame.image) == "GRKB"


def test_a_late_start_of_the_streams_is_time_zero(tmp_path: Path) -> None:
    times = [7.0 + i / 10 for i in range(30)]
    path = make_media(tmp_path / "late.mkv", [gray(i) for i in range(30)], times=times)
    clip = open_clip(path)
    assert shown(clip) == [(0, 0.5, 5), (1, 1.5, 15), (2, 2.5, 25)]


def test_a_single_frame_and_a_single_pixel_work(tmp_path: Path) -> None:
    path = make_media(tmp_path / "one.mkv", [np.full((1, 1, 3), 200, np.uint8)], codec="ffv1", pix_fmt="bgr0")
    clip = open_clip(path)
    (frame,) = clip.frames(None)
    assert clip.size == (1, 1) and frame.image.tolist() == [[[200, 200, 200]]]


def test_8k_frames_work(tmp_path: Path) -> None:
    path = make_media(tmp_path / "8k.avi", [corners((4320, 7680))], codec="mjpeg", pix_fmt="yuvj420p")
    clip = open_clip(path)
    (frame,) = clip.frames(None)
    assert clip.size == frame.image.shape[:2] == (4320, 7680)
    assert corner_names(frame.image) == "RGBK"


def test_colors_follow_the_tags_of_the_stream(tmp_path: Path) -> None:
    full = make_media(tmp_path / "full.avi", [corners()] * 5, codec="mjpeg", pix_fmt="yuvj420p")
    (frame,) = open_clip(full).frames(None)
    assert np.abs(frame.image[4, 4].astype(int) - [250, 0, 0]).max() < 8


def test_a_video_cut_in_half_yields_its_first_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0)
    pictures = [noise.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(60)]
    whole = make_media(tmp_path / "a.mp4", pictures, sound=tone(6), options={"movflags": "+faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    clip = open_clip(cut)
    with caplog.at_level(logging.WARNING):
        got = list(clip.frames(None))
    assert len(clip.times) == 6 and 1 <= len(got) <= 4
    assert [frame.index for frame in got] == list(range(len(got)))
    assert "ends early" in caplog.text and "truncated" in caplog.text
    assert any("truncated" in warning for warning in clip.warnings)


def test_damaged_packets_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_media(tmp_path / "a.avi", [corners()] * 30, codec="mjpeg", pix_fmt="yuvj420p")
    data = bytearray(path.read_bytes())
    size = len(data) // 30
    data[10 * size : 13 * size] = bytes(3 * size)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert len(list(open_clip(path).frames(None))) == 3
    assert "damaged" in caplog.text


def test_a_change_of_size_within_a_stream_keeps_the_clip_size(tmp_path: Path) -> None:
    first = make_media(tmp_path / "a.ts", [gray(3)] * 20)
    second = make_media(tmp_path / "b.ts", [gray(9, (96, 128))] * 20)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    images = [frame.image for frame in open_clip(joined, fps=2).frames(None)]
    assert {image.shape for image in images} == {(48, 64, 3)}
    assert [which(image) for image in images] == [3, 3, 3, 3, 9, 9, 9, 9]


def test_decoding_is_lazy_and_keeps_one_picture(tmp_path: Path) -> None:
    path = make_media(
        tmp_path / "long.mp4",
        [gray(i, (120, 160)) for i in range(240)],
        fps=2,
        codec_options={"preset": "ultrafast", "g": "50"},
    )
    clip = open_clip(path, fps=1)
    assert len(clip.times) == 120  # two minutes
    alive: list[weakref.ref[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]] = []
    peaks = []
    for _ in range(3):  # other threads of this process may allocate meanwhile
        tracemalloc.start()
        try:
            for frame in clip.frames(None):
                alive = [ref for ref in alive if ref() is not None]
                assert len(alive) <= 1
                alive.append(weakref.ref(frame.image))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert min(peaks) < 4 * 120 * 160 * 3


def test_decoded_pictures_are_freed_at_once(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4", [gray(i) for i in range(100)])
    gc.collect()
    gc.disable()  # what only the collector can free piles up meanwhile, 12 MB a frame at 4K
    try:
        assert sum(1 for _ in open_clip(path, fps=10).frames(None)) == 100
        assert sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects()) < 10
    finally:
        gc.enable()


def test_probe_says_what_a_file_holds(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4", [gray(i) for i in range(20)], sound=tone(2, 48000, channels=2), rate=48000)
    info = probe(path)
    assert (info.kind, info.size, info.fps, info.video_codec) == ("video", (48, 64), 10.0, "h264")
    assert (info.audio_codec, info.audio_rate, info.audio_channels) == ("aac", 48000, 2)
    assert info.duration == pytest.approx(2.0)
    wav = make_media(tmp_path / "a.wav", sound=tone(1), sound_codec="pcm_s16le")
    assert (probe(wav).kind, probe(wav).size) == ("audio", None)
    assert probe(wav).duration == pytest.approx(1.0, abs=0.01)


def test_the_first_real_stream_is_the_video(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream, size in zip(streams, [(48, 64), (32, 32)], strict=True):
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for index in range(10):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(gray(index, (stream.height, stream.width)), format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    assert open_clip(path).size == (48, 64)


# --------------------------------------------------------------------------------------------------- pictures


def save(path: Path, image: np.ndarray, **options: object) -> Path:
    Image.fromarray(image).save(path, **options)  # type: ignore[arg-type]
    return path


def test_a_folder_of_pictures_is_read_in_natural_order(tmp_path: Path) -> None:
    for number, name in enumerate(["f1.png", "f2.bmp", "f10.webp", "g3.jpg"]):
        save(tmp_path / name, gray(number))
    (tmp_path / "notes.txt").write_text("not a picture")
    clip = open_clip(tmp_path, fps=2.0)
    assert shown(clip) == [(0, 0.25, 0), (1, 0.75, 1), (2, 1.25, 2), (3, 1.75, 3)]
    assert shown(clip, frozenset({2})) == [(2, 1.25, 2)]
    assert clip.id == tmp_path.name and clip.audio is None
    assert (probe(tmp_path).kind, probe(tmp_path).frames) == ("images", 4)


def test_one_picture_lasts_as_long_as_its_sound(tmp_path: Path) -> None:
    picture = save(tmp_path / "dog.jpg", gray(5))
    wav = make_media(tmp_path / "dog.wav", sound=tone(3.0), sound_codec="pcm_s16le")
    clip = open_clip(picture, audio=wav)
    assert shown(clip) == [(0, 0.5, 5), (1, 1.5, 5), (2, 2.5, 5)]
    assert clip.audio is not None and clip.audio.duration == pytest.approx(3.0)
    assert open_clip(picture).times == (0.5,)


def test_pictures_are_turned_by_their_exif_tag_and_become_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise
    save(tmp_path / "a.jpg", corners(), exif=exif, quality=95)
    clip = open_clip(tmp_path / "a.jpg")
    (frame,) = clip.frames(None)
    assert clip.size == frame.image.shape[:2] == (64, 48)
    assert corner_names(frame.image) == "BRKG"
    save(tmp_path / "grey16.png", np.full((4, 4), 0x8000, np.uint16))
    (frame,) = open_clip(tmp_path / "grey16.png").frames(None)
    assert frame.image.shape == (4, 4, 3) and int(frame.image[0, 0, 0]) == 0x80


def test_a_live_stream_without_a_length_is_as_long_as_its_packets(tmp_path: Path) -> None:
    path = make_media(tmp_path / "live.mkv", [gray(i) for i in range(15)], options={"live": "1"})
    assert probe(path).duration == pytest.approx(1.5)
    assert len(open_clip(path, fps=2).times) == 3


def test_a_clip_of_no_pictures_is_refused() -> None:
    with pytest.raises(InputError, match=r"^the clip 'bare' has no images; name at least one$"):
        open_images([], id="bare", audio="bare.wav")


def test_pictures_with_their_video_have_the_frames_in_between(tmp_path: Path) -> None:
    video = make_media(tmp_path / "a.mp4", [gray(i) for i in range(20)])
    sound = make_media(tmp_path / "a.wav", sound=tone(2.0), sound_codec="pcm_s16le")
    pictures = [save(tmp_path / f"{i}.png", corners((40, 40))) for i in range(2)]
    assert open_images(pictures, id="a", audio=sound).dense_frames is None
    clip = open_images(pictures, id="a", audio=sound, video=video)
    assert clip.dense_frames is not None
    frames = list(clip.dense_frames(5.0, 20))
    assert [frame.time for frame in frames] == pytest.approx([0.1 + 0.2 * i for i in range(10)])
    assert {frame.image.shape for frame in frames} == {(20, 20, 3)}, "in the proportions of the pictures"
    assert [which(frame.image) for frame in frames] == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]


def test_a_video_beside_pictures_that_has_none_is_refused_when_it_is_read(tmp_path: Path) -> None:
    sound = make_media(tmp_path / "a.wav", sound=tone(1.0), sound_codec="pcm_s16le")
    clip = open_images([save(tmp_path / "0.png", corners())], id="a", audio=sound, video=sound)
    assert clip.dense_frames is not None
    with pytest.raises(InputError, match=r"a\.wav has no picture"):
        next(clip.dense_frames(5.0, 20))


def test_a_damaged_picture_of_a_folder_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        save(tmp_path / f"{number}.png", np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8))
    middle = tmp_path / "1.png"
    middle.write_bytes(middle.read_bytes()[:900])
    with caplog.at_level(logging.WARNING):
        assert [frame.index for frame in open_clip(tmp_path).frames(None)] == [0, 2]
    assert "1.png is damaged" in caplog.text


def test_limits_are_the_callers(tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png", corners((50, 50)))
    assert open_clip(picture, limits=MediaLimits(max_pixels=2500)).size == (50, 50)


def test_a_file_that_grows_while_it_is_read_has_the_frames_of_its_start(tmp_path: Path) -> None:
    whole = make_media(tmp_path / "whole.ts", [gray(4 * i) for i in range(60)], fps=10, sound=tone(6)).read_bytes()
    path = tmp_path / "grows.ts"
    path.write_bytes(whole[: len(whole) // 2])
    clip = open_clip(path, fps=1)
    with path.open("ab") as file:
        file.write(whole[len(whole) // 2 :])
    assert [frame.time for frame in clip.frames(None)] == pytest.approx(clip.times, abs=0.05)
    assert clip.audio is not None and clip.audio.duration == pytest.approx(len(clip.times), abs=0.5)
    assert len(open_clip(path, fps=1).times) == 6 > len(clip.times)
