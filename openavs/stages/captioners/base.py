"""Captioner protocol (audio -> text), and the preprocessing and validation that all adapters share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from inspect import getattr_static
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import numpy.typing as npt
import soxr

from openavs.errors import InputError, InvalidOutputError
from openavs.structures.types import AudioWindow, Caption, Event, Waveform

Samples = npt.NDArray[np.float32]  # [N]

_MAX_CHARACTERS = 300  # of a caption


@runtime_checkable
class Captioner(Protocol):
    """Describes the sounds of audio windows as text."""

    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """Return one list of captions per window, best first; several questions or labels give several captions.

        Windows may differ in length and sample rate; none of them is silent or empty.
        """
        ...


@runtime_checkable
class EventCaptioner(Protocol):
    """Finds the phrases that sound in a clip, and their exact times. The pipeline prefers it to `Captioner.caption`."""

    def events(self, audio: Waveform) -> list[Event]:
        """Return the events of a clip's whole audio, by onset; events of one phrase do not overlap."""
        ...


def gives_events(captioner: Any) -> TypeGuard[EventCaptioner]:
    """Return whether a captioner has `events`, without reading it: an attribute of a lazy backend loads its model.

    Before Python 3.12 `isinstance` with a protocol reads attributes.
    """
    return callable(getattr_static(captioner, "events", None))


def crop_or_pad(audio: Waveform, rate: int, longest: int | None = None, shortest: int = 0) -> Samples:
    """Return the samples at `rate` Hz, at most `longest` (the center is kept) and at least `shortest` (zeros follow).

    Audio without samples stays empty.
    """
    samples = audio.samples
    if not len(samples):
        return samples
    if audio.rate != rate:
        samples = soxr.resample(samples, audio.rate, rate)
    surplus = len(samples) - longest if longest is not None else 0
    if longest is not None and surplus > 0:  # always the center: extractors cut off the end or crop at random
        samples = samples[surplus // 2 : surplus // 2 + longest]
    if len(samples) < shortest:
        samples = np.pad(samples, (0, shortest - len(samples)))
    return np.asarray(samples, dtype=np.float32)


def audio_batches(sounds: Sequence[Samples], size: int) -> Iterator[list[int]]:
    """Yield the positions of the sounds that are not empty, at most `size` at a time."""
    nonempty = [i for i, sound in enumerate(sounds) if len(sound)]
    for start in range(0, len(nonempty), size):
        yield nonempty[start : start + size]


def check_finite(finite: Iterable[bool], windows: Sequence[AudioWindow], output: str) -> None:
    """Check that the output of a model is finite for every window.

    Args:
        finite: True for each window with finite values only.
        windows: the windows.
        output: the model and its output, such as "CLAP model 'x' gave scores".

    Raises:
        InvalidOutputError: names the first window without.
    """
    for window, valid in zip(windows, finite, strict=True):
        if not valid:
            raise InvalidOutputError(
                f"the {output} that are not finite for the window from {window.start:g} to {window.end:g} s; try dtype "
                "float32 or bfloat16, or another copy of the model"
            )


def one_line(text: str, max_characters: int = _MAX_CHARACTERS) -> str:
    """Return the text on one line, truncated at a word if it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= max_characters else line[: max_characters + 1].rsplit(" ", 1)[0][:max_characters]


def validate_questions(captioner: str, questions: Sequence[str]) -> tuple[str, ...]:
    """Return the questions of a captioner.

    Raises:
        InputError: there is none, one has no words, or one is there twice.
    """
    if not questions or not all(isinstance(question, str) and question.strip() for question in questions):
        raise InputError(f"{captioner}: questions is a list of at least one text, each with words in it")
    if len(set(questions)) < len(questions):
        raise InputError(f"{captioner}: questions holds the same question twice; remove one of them")
    return tuple(questions)
