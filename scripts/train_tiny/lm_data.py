"""Training data of the tiny language model: captions of a clip by frame, and the correct answer.

The answers follow three rules. A frame gets the names of the categories of its captions, in their order, each once. A
caption with a low score is dropped if no other frame of the clip has the same category. Nothing is added: a gap remains
a gap, and words of no known category are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from openavs.stages.translators.base import Request
from openavs.structures.types import Caption
from openavs.synthetic.categories import KINDS

TRAIN, VAL, TEST = 0, 1, 2  # first number of a generator's seed: the splits are disjoint
LOW = 0.35  # a caption below this needs another frame to confirm it
MAX_FRAMES = 12

# Words outside the model's vocabulary, alone or before words that many categories share.
_UNKNOWN = ("speech", "applause", "man talking", "hair dryer", "thunder and rain", "whistle", "a crowd cheering")
_SHARED = ("", "", "", " playing", " melody", " running", " passing")


@dataclass(frozen=True)
class LabeledCaption:
    """One caption of a frame with its category."""

    kind: int | None  # index into `KINDS`; None for unknown words
    text: str
    score: float


@dataclass(frozen=True)
class Example:
    """A request and its answer, one tuple of names per frame."""

    request: Request
    answer: tuple[tuple[str, ...], ...]


def example(split: int, seed: int, index: int, longest: int = MAX_FRAMES) -> Example:
    """Return one example of a split with one to `longest` frames."""
    rng = np.random.default_rng([split, seed, index])
    count = int(rng.integers(1, longest + 1))
    captions_by_frame = _scene(count, rng) if rng.uniform() < 0.7 else _random_captions(count, rng)
    frames = [_add_unknown_words(frame, rng) for frame in captions_by_frame]
    scored = rng.uniform() > 0.05
    captions = tuple(
        tuple(Caption(caption.text, caption.score if scored else None, float(time), time + 1.0) for caption in frame)
        for time, frame in enumerate(frames)
    )
    if not scored:
        frames = [[replace(caption, score=1.0) for caption in frame] for frame in frames]
    return Example(Request(captions), answer_of(frames))


def answer_of(frames: list[list[LabeledCaption]]) -> tuple[tuple[str, ...], ...]:
    """Return the correct answer by the rules above; with one frame all captions are kept."""
    kinds = [{caption.kind for caption in frame} for frame in frames]
    answer = []
    for index, frame in enumerate(frames):
        others = set().union(*kinds[:index], *kinds[index + 1 :])
        kept = [n.kind for n in frame if n.score >= LOW or n.kind in others or len(frames) == 1]
        answer.append(tuple(dict.fromkeys(KINDS[kind].name for kind in kept if kind is not None)))
    return tuple(answer)


def _caption(kind: int, rng: np.random.Generator) -> str:
    captions = (*KINDS[kind].heard, KINDS[kind].name)
    return captions[0] if rng.uniform() < 0.4 else str(rng.choice(captions))


def _score(value: float) -> float:
    return round(float(np.clip(value, 0.2, 1.0)), 2)


def _scene(count: int, rng: np.random.Generator) -> list[list[LabeledCaption]]:
    """Return a plausible clip: one to three sources that start and stop and share the score, and wrong captions."""
    frames: list[list[LabeledCaption]] = [[] for _ in range(count)]
    kinds = rng.choice(len(KINDS), int(rng.integers(1, 4)), replace=False)
    on = rng.uniform(size=(len(kinds), count)) < rng.uniform(0.3, 1.0)
    texts = [_caption(int(kind), rng) for kind in kinds]
    for time, frame in enumerate(frames):
        share = 1.0 / max(on[:, time].sum(), 1)
        for row, kind in enumerate(kinds):
            if on[row, time]:
                text = texts[row] if rng.uniform() < 0.7 else _caption(int(kind), rng)
                frame.append(LabeledCaption(int(kind), text, _score(share + 0.12 * rng.standard_normal())))
        if rng.uniform() < 0.2:
            wrong = int(rng.integers(len(KINDS)))
            frame.append(LabeledCaption(wrong, _caption(wrong, rng), _score(rng.uniform(0.2, 0.45))))
    return frames


def _random_captions(count: int, rng: np.random.Generator) -> list[list[LabeledCaption]]:
    """Return up to three random captions per frame, of two to eight categories."""
    kinds = rng.choice(len(KINDS), int(rng.integers(2, 9)), replace=False)
    frames = []
    for _ in range(count):
        chosen = [int(kind) for kind in rng.choice(kinds, int(rng.integers(0, 4)))]
        frames.append([LabeledCaption(kind, _caption(kind, rng), _score(rng.uniform(0.15, 1.0))) for kind in chosen])
    return frames


def _add_unknown_words(frame: list[LabeledCaption], rng: np.random.Generator) -> list[LabeledCaption]:
    """Sometimes add unknown words, alone or before known ones; return at most three captions by score."""
    if rng.uniform() < 0.08:
        unknown = str(rng.choice(_UNKNOWN)) + str(rng.choice(_SHARED))
        frame = [*frame, LabeledCaption(None, unknown, _score(rng.uniform(0.15, 1.0)))]
    elif frame and rng.uniform() < 0.04:
        frame = [replace(frame[0], text=f"frantic {frame[0].text}"), *frame[1:]]
    return sorted(frame, key=lambda caption: -caption.score)[:3]
