"""Results by hand: clips of six seconds in which sounds with known times are seen or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from openavs.results.serialization import write_result
from openavs.search.sound_index import update_index
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Caption, ClipResult, FrameResult, Prompt, Segment

SIZE = (48, 64)
BOX = (8.0, 4.0, 24.0, 20.0)


class Sound(NamedTuple):
    """A caption from second `first` to `last`, the thing that its prompt names, and whether it is segmented."""

    caption: str
    thing: str
    first: int
    last: int
    seen: bool = True
    score: float = 0.8
    label: str | None = None


def result_of(clip: str, *sounds: Sound, seconds: int = 6, source: str | None = None) -> ClipResult:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[6:18, 10:22] = True
    frames = []
    for i in range(seconds):
        now = [sound for sound in sounds if sound.first <= i < sound.last]
        captions = [Caption(s.caption, s.score, float(i), i + 1.0) for s in now]
        prompts = [Prompt(s.thing, s.label, "lexicon", (c,)) for s, c in zip(now, captions, strict=True)]
        segments = [
            Segment(mask_to_rle(mask), BOX, s.thing, s.score - 0.1 + 0.01 * i, label=s.label, track=k)
            for k, s in enumerate(now)
            if s.seen
        ]
        frames.append(FrameResult(i, i + 0.5, not now, tuple(captions), tuple(prompts), tuple(segments)))
    return ClipResult(clip, SIZE, tuple(frames), source)


YARD = (Sound("dog barking", "dog", 1, 4), Sound("Door", "door", 3, 5, seen=False))
ROOM = (Sound("Bark", "dog", 0, 2, seen=False, score=0.9), Sound("Music", "piano", 0, 6, label="instrument"))
STREET = (Sound("Siren", "ambulance", 2, 5, score=0.6), Sound("puppy", "puppy", 0, 1, score=0.5))


def write_run(folder: Path, **clips: Sequence[Sound]) -> Path:
    for name, sounds in clips.items():
        write_result(folder, result_of(name, *sounds))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A result folder of two clips: `yard` and `room`."""
    return write_run(tmp_path / "home", yard=YARD, room=ROOM)


@pytest.fixture
def index(home: Path, tmp_path: Path) -> Path:
    """The index of `home` and another result folder, `town`, with the clip `street`."""
    update_index(tmp_path / "sounds.db", [home, write_run(tmp_path / "town", street=STREET)])
    return tmp_path / "sounds.db"
