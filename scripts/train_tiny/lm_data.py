"""What the tiny language model is trained on: what was heard in a clip, frame by frame, and the right answer.

The answers follow three rules. A frame gets the names of the kinds whose captions it has, in their order, each once.
A caption that is little sure, of a kind that no other frame of the clip has, was misheard and is left out. Nothing is
added: a gap stays a gap, and words that mean no known kind mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from openavs.stages.translators.base import Request
from openavs.structures.types import Caption
from openavs.synthetic.categories import KINDS

TRAIN, VAL, TEST = 0, 1, 2  # first number of every generator's seed: the three never meet
LOW = 0.35  # a caption below this needs another frame to confirm it
MAX_FRAMES = 12

# Outside the model's vocabulary, alone or before words that many kinds share.
_STRANGE = ("speech", "applause", "man talking", "hair dryer", "thunder and rain", "whistle", "a crowd cheering")
_SHARED = ("", "", "", " playing", " melody", " running", " passing")


@dataclass(frozen=True)
class Note:
    """One caption of a frame and the index of the kind it means, None for strange words."""

    kind: int | None
    text: str
    score: float


@dataclass(frozen=True)
class Example:
    """A request and the names that answer it, one tuple per frame."""

    request: Request
    answer: tuple[tuple[str, ...], ...]


def example(split: int, seed: int, index: int, longest: int = MAX_FRAMES) -> Example:
    """One example of a split, of one to `longest` frames."""
    rng = np.random.default_rng([split, seed, index])
    count = int(rng.integers(1, longest + 1))
    notes = _scene(count, rng) if rng.uniform() < 0.7 else _anything(count, rng)
    frames = [_spoilt(frame, rng) for frame in notes]
    scored = rng.uniform() > 0.05
    captions = tuple(
        tuple(Caption(note.text, note.score if scored else None, float(time), time + 1.0) for note in frame)
        for time, frame in enumerate(frames)
    )
    if not scored:
        frames = [[replace(note, score=1.0) for note in frame] for frame in frames]
    return Example(Request(captions), answer_of(frames))


def answer_of(frames: list[list[Note]]) -> tuple[tuple[str, ...], ...]:
    """The right answer, by the rules above. A clip of one frame has no others to contradict it: all is kept."""
    kinds = [{note.kind for note in frame} for frame in frames]
    answer = []
    for index, frame in enumerate(frames):
        others = set().union(*kinds[:index], *kinds[index + 1 :])
        kept = [n.kind for n in frame if n.score >= LOW or n.kind in others or len(frames) == 1]
        answer.append(tuple(dict.fromkeys(KINDS[kind].name for kind in kept if kind is not None)))
    return tuple(answer)


def _say(kind: int, rng: np.random.Generator) -> str:
    ways = (*KINDS[kind].heard, KINDS[kind].name)
    return ways[0] if rng.uniform() < 0.4 else str(rng.choice(ways))


def _score(value: float) -> float:
    return round(float(np.clip(value, 0.2, 1.0)), 2)


def _scene(count: int, rng: np.random.Generator) -> list[list[Note]]:
    """A plausible clip: one to three kinds that start and stop and share the score, and sounds misheard."""
    frames: list[list[Note]] = [[] for _ in range(count)]
    kinds = rng.choice(len(KINDS), int(rng.integers(1, 4)), replace=False)
    on = rng.uniform(size=(len(kinds), count)) < rng.uniform(0.3, 1.0)
    said = [_say(int(kind), rng) for kind in kinds]
    for time, frame in enumerate(frames):
        share = 1.0 / max(on[:, time].sum(), 1)
        for row, kind in enumerate(kinds):
            if on[row, time]:
                text = said[row] if rng.uniform() < 0.7 else _say(int(kind), rng)
                frame.append(Note(int(kind), text, _score(share + 0.12 * rng.standard_normal())))
        if rng.uniform() < 0.2:
            misheard = int(rng.integers(len(KINDS)))
            frame.append(Note(misheard, _say(misheard, rng), _score(rng.uniform(0.2, 0.45))))
    return frames


def _anything(count: int, rng: np.random.Generator) -> list[list[Note]]:
    """Up to three captions a frame of two to eight kinds, without rhyme or reason."""
    kinds = rng.choice(len(KINDS), int(rng.integers(2, 9)), replace=False)
    frames = []
    for _ in range(count):
        chosen = [int(kind) for kind in rng.choice(kinds, int(rng.integers(0, 4)))]
        frames.append([Note(kind, _say(kind, rng), _score(rng.uniform(0.15, 1.0))) for kind in chosen])
    return frames


def _spoilt(frame: list[Note], rng: np.random.Generator) -> list[Note]:
    """Now and then a caption of strange words, or strange words before known ones; surest first, three at most."""
    if rng.uniform() < 0.08:
        strange = str(rng.choice(_STRANGE)) + str(rng.choice(_SHARED))
        frame = [*frame, Note(None, strange, _score(rng.uniform(0.15, 1.0)))]
    elif frame and rng.uniform() < 0.04:
        frame = [replace(frame[0], text=f"frantic {frame[0].text}"), *frame[1:]]
    return sorted(frame, key=lambda note: -note.score)[:3]
