"""What a visitor may ask for; every refusal is one sentence that names the file as its owner does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures

from openavs.errors import InputError
from openavs.media import write_video
from openavs.web.settings import ServerConfig
from openavs.web.wishes import SegmentRequest, open_request, threshold_of, vocabulary_of
from tests.web.conftest import SETTINGS


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "room.png"
    Pictures.fromarray(np.full((48, 64, 3), 128, dtype=np.uint8)).save(path)
    return path


def refusal(wish: SegmentRequest, settings: ServerConfig = SETTINGS) -> str:
    with pytest.raises(InputError) as problem:
        open_request(wish, 1.0, settings)
    sentence = str(problem.value)
    assert str(wish.source.parent) not in sentence  # where it lies on the server is nobody's business
    return sentence


def test_a_video_with_sound(scene: Path) -> None:
    clip = open_request(SegmentRequest(scene), 2.0, SETTINGS)
    assert (len(clip.times), clip.id, clip.size) == (8, "scene", (144, 192))


def test_a_picture_lasts_as_long_as_its_sound(picture: Path, tone: Path) -> None:
    clip = open_request(SegmentRequest(picture, tone), 1.0, SETTINGS)
    assert (len(clip.times), clip.size) == (2, (48, 64))
    assert refusal(SegmentRequest(picture)) == "room.png is a picture without sound; add the sound that belongs to it"


def test_too_long_too_large_silent_and_broken(long_clip: Path, scene: Path, picture: Path, tmp_path: Path) -> None:
    assert refusal(SegmentRequest(long_clip)) == (
        "long.mp4 lasts 10 s and this page takes at most 8 s; cut it, or run 'openavs segment' on the file"
    )
    assert "larger than the 0 MB that this page takes" in refusal(SegmentRequest(scene), ServerConfig(max_upload_mb=0))
    (tmp_path / "no.mp4").write_bytes(b"\0" * 5000)
    assert refusal(SegmentRequest(tmp_path / "no.mp4")).startswith("no.mp4 ")
    assert refusal(SegmentRequest(picture, tmp_path / "no.mp4")).startswith("no.mp4 ")
    mute = tmp_path / "mute.mp4"
    write_video(mute, (np.full((48, 64, 3), v, dtype=np.uint8) for v in range(20)), 10)
    assert refusal(SegmentRequest(mute)).startswith("mute.mp4 has no sound track")


def test_sound_alone_is_told_what_lacks(tone: Path) -> None:
    assert "give a video, or a picture with the sound beside it" in refusal(SegmentRequest(tone))


def test_a_vocabulary_is_a_list_of_things() -> None:
    assert vocabulary_of(" dog,cat ;dog,\n big   bell ,") == ("dog", "cat", "big bell")
    assert vocabulary_of(None) == ()
    with pytest.raises(InputError, match="at most 50 things"):
        vocabulary_of(",".join(map(str, range(51))))
    with pytest.raises(InputError, match="60 letters"):
        vocabulary_of("x" * 61)


def test_a_threshold_is_a_score() -> None:
    assert threshold_of(None) is None
    assert threshold_of(0.16000001) == 0.16
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            threshold_of(wrong)
