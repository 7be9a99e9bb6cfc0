"""A result folder made by hand: a small video with sound and masks that are known exactly."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from openavs.exports.base import ExportItem, open_source
from openavs.jobs.save import save_result
from openavs.media.encode import write_video
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import (
    BoolMask,
    Caption,
    ClipResult,
    Event,
    FrameResult,
    Prompt,
    Rejection,
    Segment,
    Verdict,
    Waveform,
)

SIZE = (48, 64)
FPS = 5  # of the video; results have a frame a second
RECIPE = {"name": "by-hand", "sample": {"fps": 1.0}, "label_filter": {"min_score": 0.5}}
EVENTS = (Event("dog barking", 0.24, 1.88, 0.91, 25.0, (0.5, 0.91)), Event("=SUM(A1)", 2.0, 2.5, 0.6, 25.0))
SYNC = Verdict("kept", 0.9, 0.125, None, "sync")
UNSURE = (Verdict("kept", 0.8, None, "bell", "clip"), Verdict("unresolved", 0.5, 0.01, None, "sync"))
LEFT, RIGHT = (200, 40, 40), (40, 40, 200)  # the colors of the video's halves


def disc(y: float, x: float, radius: float) -> BoolMask:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.asarray((rows - y) ** 2 + (columns - x) ** 2 <= radius**2)


def ring() -> BoolMask:
    """A mask with a hole."""
    return disc(22, 20, 14) & ~disc(22, 20, 6)


def pair() -> BoolMask:
    """A mask in two parts."""
    return disc(12, 48, 6) | disc(36, 48, 8)


def segment(mask: BoolMask, phrase: str, score: float, track: int | None = None) -> Segment:
    ys, xs = np.nonzero(mask)
    box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
    return Segment(mask_to_rle(mask), box, phrase, score, 0.9, None, None, track)


def by_hand(clip: str, source: str | None, seconds: int, *, tracked: bool = False) -> ClipResult:
    """Even frames have a dog and a bell, odd ones the dog alone; the last one is silent.

    With tracks there are also events, verdicts, and another dog that is `silent` in frame 3.
    """
    frames = []
    for i in range(seconds):
        heard = (Caption("dog barking", 0.8, float(i), i + 1.0), Caption("=SUM(A1)", None, float(i), i + 1.0))
        asked = (Prompt("dog", origin="lexicon"), Prompt("bell", origin="lexicon"))
        dog, bell = (
            segment(ring(), "dog", 0.75, 7 if tracked else None),
            segment(pair(), "bell", 0.4, 3 if tracked else None),
        )
        found = (dog, bell) if i % 2 == 0 else (dog,)
        dropped = () if i % 2 == 0 else (Rejection("bell", "below threshold", 0.1, (1.0, 2.0, 3.0, 4.0)),)
        if tracked:
            found = tuple(replace(s, verdicts=(SYNC,) if s is dog else UNSURE) for s in found)
            dropped += (Rejection("dog", "silent", 0.2, (5.0, 6.0, 7.0, 8.0), 0.125, "sync"),) * (i == 3)
        frames.append(FrameResult(i, i + 0.5, False, heard, asked, found, dropped))
    frames[-1] = FrameResult(seconds - 1, seconds - 0.5, silent=True)
    return ClipResult(clip, SIZE, tuple(frames), source, RECIPE, timings={"localize": 0.25}, events=EVENTS * tracked)


def write_source(path: Path, seconds: int, *, mute: bool = False) -> None:
    picture = np.empty((*SIZE, 3), dtype=np.uint8)
    picture[:, : SIZE[1] // 2], picture[:, SIZE[1] // 2 :] = LEFT, RIGHT
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(seconds * 16000) / 16000)
    sound = None if mute else Waveform(tone.astype(np.float32), 16000)
    write_video(path, (picture for _ in range(seconds * FPS)), FPS, sound)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder of two clips: `one` (6 s, with tracks and an overlay) and `two` (5 s, without)."""
    folder = tmp_path_factory.mktemp("exported")
    for name, seconds, tracked in (("one", 6, True), ("two", 5, False)):
        video = folder / f"{name}.mp4"
        write_source(video, seconds)
        result = by_hand(name, str(video), seconds, tracked=tracked)
        files = ("overlay.mp4",) if name == "one" else ()
        save_result(folder / "out", result, partial(open_source, result), files=files)
    return folder / "out"


@pytest.fixture
def mute(tmp_path: Path) -> ExportItem:
    """Five seconds of a video without sound."""
    write_source(tmp_path / "mute.mp4", 5, mute=True)
    result = by_hand("mute", str(tmp_path / "mute.mp4"), 5)
    return ExportItem(result, partial(open_source, result))


@pytest.fixture
def results() -> list[ClipResult]:
    """The same two results, without a video."""
    return [by_hand("one", None, 6, tracked=True), replace(by_hand("two", None, 5), clip="two")]
