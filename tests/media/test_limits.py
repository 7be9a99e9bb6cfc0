"""The limits that grow with a file, and those on the sizes that a header may claim."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.media import limits
from openavs.media.audio import read_audio
from openavs.media.clip import open_clip, probe
from openavs.media.encode import TimedImage, write_transparent
from openavs.media.limits import MediaLimits
from openavs.media.remux import write_overlay
from tests.media.corpus_bytes import huge, wav
from tests.media.corpus_streams import many_tracks, plain, stamped
from tests.media_files import gray


def test_decoding_ends_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plain(tmp_path / "a.mp4")
    clip = open_clip(path)
    monkeypatch.setattr(limits, "DECODE_SECONDS", 0.0)
    monkeypatch.setattr(limits, "DECODE_SECONDS_PER_MEGABYTE", 0.0)
    for read in (lambda: list(clip.frames(None)), lambda: read_audio(path), lambda: open_clip(path)):
        with pytest.raises(InputError, match=r"a\.mp4 takes longer than 0 s, the limit for a file of its size"):
            read()


def test_time_is_counted_for_decoding_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    watch = limits.DecodeTimeBudget(plain(tmp_path / "a.mp4"))
    for _ in watch.timed(range(3)):
        now[0] += 10 * watch.limit  # what a model does with a picture
    assert watch.spent == 0.0
    with pytest.raises(InputError, match="takes longer"), watch:
        now[0] += 2 * watch.limit


def test_a_larger_file_may_take_longer_and_be_silent_for_longer(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(bytes(1 << 20))
    (tmp_path / "large").write_bytes(bytes(10 << 20))
    small, large = (limits.DecodeTimeBudget(tmp_path / name).limit for name in ("small", "large"))
    assert large - small == pytest.approx(9 * 60)
    assert limits.longest_silence(10 << 20) - limits.longest_silence(1 << 20) == 9 * 3600


def test_more_frames_than_the_limit_are_not_planned(tmp_path: Path) -> None:
    path = plain(tmp_path / "a.mp4")
    with pytest.raises(InputError, match=r"2e\+09 frames at 1e\+09 a second, over the limit of 1048576"):
        open_clip(path, fps=1e9)
    with pytest.raises(InputError, match="over the limit of 10"):
        open_clip(path, fps=20, limits=MediaLimits(max_frames=10))
    assert len(open_clip(path, fps=5, limits=MediaLimits(max_frames=10)).times) == 10


def test_frames_of_16384_pixels_a_side_are_refused(tmp_path: Path) -> None:
    huge(tmp_path / "huge.mov")
    with pytest.raises(InputError, match="over the limit of"):
        open_clip(tmp_path / "huge.mov")


def test_the_rates_of_sounds_have_limits(tmp_path: Path) -> None:
    for rate in (limits.MIN_RATE - 1, limits.MAX_RATE + 1):
        wav(tmp_path / "a.wav", rate=rate)
        with pytest.raises(InputError, match=f"a.wav has {rate} samples a second, outside of the limits"):
            read_audio(tmp_path / "a.wav")
    for rate in (limits.MIN_RATE, limits.MAX_RATE):
        wav(tmp_path / "a.wav", rate=rate)
        sound = read_audio(tmp_path / "a.wav")
        assert sound is not None and sound.rate == rate


def test_tracks_beyond_the_limit_are_not_looked_at_or_refused(tmp_path: Path) -> None:
    many_tracks(tmp_path / "a.mkv", limits.MAX_TRACKS + 10)
    assert probe(tmp_path / "a.mkv").size == (48, 64)
    many_tracks(tmp_path / "few.mp4", 32)
    assert probe(tmp_path / "few.mp4").size == (48, 64)
    many_tracks(tmp_path / "a.mp4", limits.MAX_TRACKS)
    with pytest.raises(InputError, match="more than 64 tracks"):
        probe(tmp_path / "a.mp4")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not find the setting; docs/media.md says so")
def test_ffmpeg_takes_no_more_at_once_than_the_limit() -> None:
    import ctypes

    import av._core

    limits.cap_allocations()
    library = ctypes.CDLL(av._core.__file__)
    library.av_malloc.restype = ctypes.c_void_p
    library.av_free.argtypes = [ctypes.c_void_p]
    small = library.av_malloc(ctypes.c_size_t(limits.MAX_ALLOCATION - 4096))
    assert small
    library.av_free(small)
    assert not library.av_malloc(ctypes.c_size_t(limits.MAX_ALLOCATION + 1))


def test_a_picture_that_is_shown_for_a_day_can_be_painted(tmp_path: Path) -> None:
    stamped(tmp_path / "a.mkv", [0, 100, 20 * 3600 * 1000])
    write_overlay(tmp_path / "o.mp4", tmp_path / "a.mkv", lambda time, image: image)
    assert probe(tmp_path / "o.mp4").duration > 17 * 3600
    alpha = np.dstack([gray(3), np.full((48, 64), 255, np.uint8)])
    write_transparent(tmp_path / "o.mov", [TimedImage(0, 1, alpha), TimedImage(20 * 3600, 1, alpha)], "mov")
    assert probe(tmp_path / "o.mov").duration == pytest.approx(20 * 3600 + 1, abs=1)


def test_a_clock_that_says_more_than_a_day_is_refused(tmp_path: Path) -> None:
    stamped(tmp_path / "a.mkv", [0, 100, 30 * 3600 * 1000, 30 * 3600 * 1000 + 100])
    with pytest.raises(InputError, match="over the limit of 86400 s"):
        open_clip(tmp_path / "a.mkv")
