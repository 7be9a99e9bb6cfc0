"""Unusable files are refused in one sentence, before decoding and without opening other files."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.media.audio import read_audio
from openavs.media.clip import open_clip, probe
from openavs.media.limits import MediaLimits
from tests.media_files import gray, make_media, tone


def refused(path: Path | str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        open_clip(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and "Errno" not in message and len(message) < 400
    return message


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_media(tmp_path / "good.mp4", [gray(i) for i in range(20)], sound=tone(2))


def test_missing_and_empty(tmp_path: Path) -> None:
    assert "there is no file" in refused(tmp_path / "nothing.mp4")
    (tmp_path / "empty.mp4").touch()
    assert "is empty" in refused(tmp_path / "empty.mp4")
    (tmp_path / "folder").mkdir()
    assert "has no images" in refused(tmp_path / "folder")
    assert "not a regular file" in refused("/dev/null")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.wav"])
def test_text_and_random_bytes_are_not_media(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for seed in range(20):
        path.write_bytes(np.random.default_rng(seed).bytes(4000))
        refused(path)
    path.write_text("[00:01.00] these lines look like the lyrics of a song\n" * 40)
    assert "cannot be read" in refused(path)
    path.write_text("Just some words.\n" * 100)
    assert "cannot be read" in refused(path)
    with pytest.raises(InputError):
        read_audio(path)


def test_a_picture_named_mp4_and_a_video_named_png(tmp_path: Path, video: Path) -> None:
    Image.fromarray(gray(1)).save(tmp_path / "p.png")
    shutil.copy(tmp_path / "p.png", tmp_path / "p.mp4")
    assert "cannot be read" in refused(tmp_path / "p.mp4")
    shutil.copy(video, tmp_path / "v.png")
    assert "cannot be read as a png" in refused(tmp_path / "v.png")


def test_sound_alone_is_not_a_clip(tmp_path: Path) -> None:
    wav = make_media(tmp_path / "a.wav", sound=tone(1), sound_codec="pcm_s16le")
    assert "sound but no picture" in refused(wav)


def test_cover_art_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=44100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(gray(3), format="rgb24").reformat(format="yuvj420p")
        container.mux(cover.encode(picture))
        container.mux(cover.encode(None))
        piece = av.AudioFrame.from_ndarray(tone(1), format="fltp", layout="mono")
        piece.sample_rate = 44100
        container.mux(audio.encode(piece))
        container.mux(audio.encode(None))
    assert "sound but no picture" in refused(path)
    assert read_audio(path) is not None


def test_no_playlist_and_no_protocol_opens_anything_else(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tricks = {
        "ff.mp4": "ffconcat version 1.0\nfile good.mp4\n",
        "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ngood.mp4\n#EXT-X-ENDLIST\n",
        "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ngood.mp4\n#EXT-X-ENDLIST\n",
        "dash.mpd": '<?xml version="1.0"?><MPD><Period><AdaptationSet/></Period></MPD>',
        "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 1 RTP/AVP 96\n",
    }
    for name, text in tricks.items():
        Path(name).write_text(text)
        assert "cannot be read" in refused(name)
    for address in ("concat:good.mp4|good.mp4", "http://127.0.0.1:9/a.mp4", "subfile,,start,0,end,0,,:good.mp4"):
        assert ("is an address" if "//" in address else "there is no file") in refused(address)
        with pytest.raises(InputError):
            probe(address)
        with pytest.raises(InputError):
            read_audio(address)
    Path("concat:a|b.mp4").write_bytes(video.read_bytes())  # a file may be called so
    assert open_clip("concat:a|b.mp4").size == (48, 64)


def test_large_frames_are_refused_at_the_header(tmp_path: Path, video: Path) -> None:
    message = refused(video, limits=MediaLimits(max_pixels=48 * 64 - 1))
    assert "64 x 48 pixels, over the limit of 3071" in message
    assert 7680 * 4320 < MediaLimits().max_pixels < 16384 * 8640


def test_a_header_with_a_wrong_size_is_refused_by_the_decoder(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.avi", [gray(1, (480, 640))] * 3, codec="mjpeg", pix_fmt="yuvj420p")
    data = path.read_bytes()
    claimed = data.replace(struct.pack("<II", 640, 480), struct.pack("<II", 64, 48))
    assert claimed != data
    path.write_bytes(claimed)
    refused(path, limits=MediaLimits(max_pixels=100 * 100))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_picture_bombs_are_refused_at_the_header(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (10_000, 60_000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        path = tmp_path / f"{side}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
        refused(path)


def test_long_clips_are_refused_at_the_header(video: Path, tmp_path: Path) -> None:
    assert "over the limit of 1 s" in refused(video, limits=MediaLimits(max_duration=1))
    wav = make_media(tmp_path / "a.wav", sound=tone(2), sound_codec="pcm_s16le")
    with pytest.raises(InputError, match="over the limit of 1 s"):
        read_audio(wav, limits=MediaLimits(max_duration=1))


def test_truncated_before_the_index(tmp_path: Path, video: Path) -> None:
    half = tmp_path / "half.mp4"
    half.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert "truncated" in refused(half)


def test_a_header_without_pictures(tmp_path: Path) -> None:
    path = make_media(tmp_path / "a.mp4", [gray(0)] * 5, options={"movflags": "+frag_keyframe+empty_moov+delay_moov"})
    data = path.read_bytes()
    (tmp_path / "head.mp4").write_bytes(data[: data.index(b"moof") - 4])
    refused(tmp_path / "head.mp4")


def test_wrong_values(video: Path, tmp_path: Path) -> None:
    for fps in (0, -1, float("nan"), float("inf")):
        assert "fps is a positive number" in refused(video, fps=fps)
    silent = make_media(tmp_path / "silent.mp4", [gray(0)] * 5)
    assert "has no audio" in refused(video, audio=silent)
    assert "there is no file" in refused(video, audio=tmp_path / "none.wav")


def test_pictures_of_different_sizes(tmp_path: Path) -> None:
    Image.fromarray(gray(0, (10, 20))).save(tmp_path / "a.png")
    Image.fromarray(gray(0, (10, 30))).save(tmp_path / "b.png")
    assert "b.png is 30 x 10 but a.png is 20 x 10" in refused(tmp_path)
