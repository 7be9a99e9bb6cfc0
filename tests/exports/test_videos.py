"""Overlays and cutouts, decoded again by PyAV and Pillow: alpha, colors, times and sound."""

from __future__ import annotations

import hashlib
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.exports.base import Categories, ExportItem, run_items
from openavs.exports.registry import ExportOptions, export
from openavs.media.audio import read_audio
from openavs.media.encode import TimedImage, write_transparent
from openavs.structures.types import ImageArray
from tests.exports.conftest import FPS, LEFT, RIGHT, SIZE, pair, ring

DOG_AND_BELL = ring() | pair()


def decode(path: Path, codec: str | None = None) -> list[tuple[float, ImageArray]]:
    """Times and RGBA pictures of a video; `codec` names the decoder (FFmpeg's own VP9 leaves alpha out)."""
    shown = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        own = av.CodecContext.create(codec, "r") if codec else stream.codec_context
        for packet in container.demux(stream):
            for frame in own.decode(packet if packet.size else None):
                rgba: npt.NDArray[np.uint8] = frame.to_ndarray(format="rgba")
                shown.append((float(frame.pts * (frame.time_base or Fraction(1, 1000))), rgba))
    return shown


def check_cutouts(pictures: list[ImageArray], tolerance: int) -> None:
    """Alpha is the mask of the sampled frame shown then, and colors within it are the video's."""
    assert len(pictures) == 6 * FPS
    for number, second in ((2, 0), (7, 1), (22, 4)):
        mask = DOG_AND_BELL if second % 2 == 0 else ring()
        alpha = pictures[number][..., 3]
        assert (alpha > 127).sum() > 0
        assert ((alpha > 127) != mask).mean() < 0.01
    inside = pictures[2][22, 9, :3].astype(int), pictures[2][36, 48, :3].astype(int)
    assert np.abs(inside[0] - LEFT).max() <= tolerance and np.abs(inside[1] - RIGHT).max() <= tolerance
    assert not (pictures[-1][..., 3] > 127).any()  # silent: no pixel is opaque


def loudest(path: Path) -> int:
    """The strongest frequency in Hz of the sound's second second."""
    sound = read_audio(path)
    assert sound is not None and sound.duration == pytest.approx(6, abs=0.15)
    spectrum = np.abs(np.fft.rfft(sound.samples[sound.rate : 2 * sound.rate]))
    return int(spectrum.argmax())


def test_webm_keeps_alpha_and_sound(run: Path, tmp_path: Path) -> None:
    export("cutout-webm", run_items(run, ["one"]), tmp_path / "cut")
    path = tmp_path / "cut" / "one.webm"
    with av.open(str(path)) as container:
        assert container.streams.video[0].metadata["ALPHA_MODE"] == "1"
        assert container.streams.audio[0].codec_context.name.endswith("opus")
    shown = decode(path, "libvpx-vp9")
    check_cutouts([picture for _, picture in shown], tolerance=40)
    assert loudest(path) == 440


def test_mov_is_prores_with_alpha_and_pcm(run: Path, tmp_path: Path) -> None:
    export("cutout-mov", run_items(run, ["one"]), tmp_path / "cut")
    path = tmp_path / "cut" / "one.mov"
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "prores"
        assert container.streams.audio[0].codec_context.name == "pcm_s16le"
    shown = decode(path)
    check_cutouts([picture for _, picture in shown], tolerance=15)
    assert [time for time, _ in shown] == pytest.approx([i / FPS for i in range(6 * FPS)], abs=1e-3)
    assert loudest(path) == 440


def test_pngs_are_exact(run: Path, tmp_path: Path) -> None:
    told = export("cutout-png", run_items(run, ["one"]), tmp_path / "cut")
    folder = tmp_path / "cut" / "one"
    pictures = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    check_cutouts(pictures, tolerance=15)
    assert pictures[0].shape == (*SIZE, 4) and np.array_equal(pictures[0][..., 3] == 255, DOG_AND_BELL)
    assert set(np.unique(pictures[0][..., 3])) == {0, 255}
    assert told.notes == ["import the images at 5 frames per second"]
    with wave.open(str(folder / "sound.wav")) as sound:
        assert sound.getnframes() / sound.getframerate() == pytest.approx(6, abs=0.15)


def test_pictures_of_a_clip_without_sound_have_no_sound_beside_them(mute: ExportItem, tmp_path: Path) -> None:
    told = export("cutout-png", [mute], tmp_path / "cut")
    assert (told.clips, len(list((tmp_path / "cut" / "mute").glob("*.png")))) == (1, 5 * FPS)
    assert not (tmp_path / "cut" / "mute" / "sound.wav").exists()


def test_odd_pictures_get_a_transparent_row_and_column(tmp_path: Path) -> None:
    white = np.full((33, 31, 4), 255, dtype=np.uint8)
    assert write_transparent(tmp_path / "odd.mov", [TimedImage(0, 0.5, white), TimedImage(0.5, 0.5, white)], "mov") == 2
    for _, picture in decode(tmp_path / "odd.mov"):
        assert picture.shape == (34, 32, 4)
        assert picture[:32, :30, 3].min() > 200
        assert picture[33, :, 3].max() == picture[:, 31, 3].max() == 0


def test_what_makes_no_video_leaves_no_file(tmp_path: Path) -> None:
    small, large = np.zeros((32, 32, 4), dtype=np.uint8), np.zeros((32, 34, 4), dtype=np.uint8)
    with pytest.raises(InputError, match=r"there are no frames to write to .*cut\.webm"):
        write_transparent(tmp_path / "cut.webm", [], "webm")
    with pytest.raises(InputError, match=r"an image is uint8 \[32, 32, 4\] like the first one, not \[32, 34, 4\]"):
        write_transparent(tmp_path / "cut.webm", [TimedImage(0, 1, small), TimedImage(1, 1, large)], "webm")
    assert not list(tmp_path.iterdir())


def test_the_background_is_removed_far_from_the_masks(run: Path, tmp_path: Path) -> None:
    export("cutout-png", run_items(run, ["one"]), tmp_path / "cut")
    picture = np.asarray(Image.open(tmp_path / "cut" / "one" / "00007.png"))  # the dog alone, on the left
    assert not picture[:, 48:, :3].any() and picture[:, 48:, 3].max() == 0


def test_an_overlay_that_is_there_is_copied_and_else_painted(run: Path, tmp_path: Path) -> None:
    export("overlay", run_items(run), tmp_path / "all")
    digests = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "all" / "one.mp4", run / "clips" / "one" / "overlay.mp4")
    ]
    assert digests[0] == digests[1]
    times = [time for time, _ in decode(tmp_path / "all" / "two.mp4")]
    assert len(times) == 5 * FPS
    with av.open(str(tmp_path / "all" / "two.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"


def test_of_some_categories_only_those_are_painted(run: Path, tmp_path: Path) -> None:
    export("overlay", run_items(run, ["one"]), tmp_path / "bell", ExportOptions(Categories(["bell"])))
    picture = decode(tmp_path / "bell" / "one.mp4")[7][1]  # a frame with the dog alone
    assert np.abs(picture[22, 9, :3].astype(int) - LEFT).max() < 15
    assert loudest(tmp_path / "bell" / "one.mp4") == 440
