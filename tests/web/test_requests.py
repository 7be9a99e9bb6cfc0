"""Validation of requests; every error is one sentence that names the file without its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.media.encode import write_video
from openavs.web import SegmentRequest, ServerConfig, parse_threshold, parse_vocabulary
from openavs.web.inference import open_request
from tests.web.conftest import CONFIG


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "room.png"
    Image.fromarray(np.full((48, 64, 3), 128, dtype=np.uint8)).save(path)
    return path


def refusal(request: SegmentRequest, config: ServerConfig = CONFIG) -> str:
    with pytest.raises(InputError) as error:
        open_request(request, 1.0, config)
    message = str(error.value)
    assert str(request.source.parent) not in message
    return message


def test_a_video_with_audio(scene: Path) -> None:
    clip = open_request(SegmentRequest(scene), 2.0, CONFIG)
    assert (len(clip.times), clip.id, clip.size) == (8, "scene", (144, 192))


def test_an_image_lasts_as_long_as_its_audio(image: Path, tone: Path) -> None:
    clip = open_request(SegmentRequest(image, tone), 1.0, CONFIG)
    assert (len(clip.times), clip.size) == (2, (48, 64))
    assert refusal(SegmentRequest(image)) == "room.png is an image; add an audio file"


def test_long_large_silent_and_broken_files_are_refused(
    long_clip: Path, scene: Path, image: Path, tmp_path: Path
) -> None:
    assert refusal(SegmentRequest(long_clip)) == (
        "long.mp4 is 10 s long and the limit is 8 s; cut it, or run 'openavs segment' on the file"
    )
    assert "larger than the limit of 0 MB" in refusal(SegmentRequest(scene), ServerConfig(max_upload_mb=0))
    (tmp_path / "no.mp4").write_bytes(b"\0" * 5000)
    assert refusal(SegmentRequest(tmp_path / "no.mp4")).startswith("no.mp4 ")
    assert refusal(SegmentRequest(image, tmp_path / "no.mp4")).startswith("no.mp4 ")
    mute = tmp_path / "mute.mp4"
    write_video(mute, (np.full((48, 64, 3), v, dtype=np.uint8) for v in range(20)), 10)
    assert refusal(SegmentRequest(mute)).startswith("mute.mp4 has no audio track")


def test_an_audio_file_alone_is_refused(tone: Path) -> None:
    assert "give a video, or an image with separate audio" in refusal(SegmentRequest(tone))


def test_a_vocabulary_is_a_list_of_words() -> None:
    assert parse_vocabulary(" dog,cat ;dog,\n big   bell ,") == ("dog", "cat", "big bell")
    assert parse_vocabulary(None) == ()
    with pytest.raises(InputError, match="at most 50 words"):
        parse_vocabulary(",".join(map(str, range(51))))
    with pytest.raises(InputError, match="60 letters"):
        parse_vocabulary("x" * 61)


def test_a_threshold_is_a_score() -> None:
    assert parse_threshold(None) is None
    assert parse_threshold(0.16000001) == 0.16
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            parse_threshold(wrong)
