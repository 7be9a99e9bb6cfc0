"""What every chat model has in common as a translator: asking, checking, asking again, falling back.

A backend adds only `_chat`. Everything that comes back passes `parse_answer`, so a caption or a model that goes astray
can at worst have a wrong noun looked for.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from openavs.prompts import Message, load_prompt
from openavs.translators.answers import AnswerError, parse_answer
from openavs.translators.base import Request, Translation
from openavs.translators.lexicon import LexiconTranslator
from openavs.translators.messages import MAX_PHRASES, build_messages, clean_text
from openavs.types import InputError

__all__ = ["AnswerError", "ChatTranslator", "Conversation", "Question", "build_messages", "parse_answer"]

logger = logging.getLogger(__name__)

Conversation = list[Message]
Frames = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Question:
    """A conversation that ends with the user's turn, and what its answer must fit: so many frames, these classes."""

    messages: Conversation
    frames: int
    vocabulary: tuple[str, ...] | None = None


@dataclass
class _Dialogue:
    """One distinct question: how often it was asked and what came of it."""

    question: Question
    attempts: int = 0
    answer: Frames | None = None
    reasons: list[str] = field(default_factory=list)  # why each attempt failed
    follow_up: Conversation = field(default_factory=list)
    closed: bool = False  # answered, or in vain
    passing: bool = False  # a fault of the moment had a part in it

    def next(self) -> Question:
        """The question with the turns that came of it so far."""
        return replace(self.question, messages=self.question.messages + self.follow_up)


@dataclass
class _Part:
    """A stretch of one clip: the frames from `start` on, and what was asked about them (None: nothing)."""

    start: int
    request: Request
    dialogue: _Dialogue | None


class ChatTranslator(ABC):
    """Asks a chat model once per clip, all frames together.

    Clips of more than `max_frames` frames are asked in consecutive parts. Parts in which nothing was heard are not
    asked; identical ones are asked once. An answer that cannot be used is asked for `retries` times more, then the
    lexicon answers and the translation's `note` says why. Frames without captions never get a phrase.

    Args:
        prompt: name or path of a prompt template.
        retries: further attempts after an unusable answer.
        max_phrases: phrases a frame keeps.
        max_frames: frames in one question.
    """

    def __init__(
        self, *, prompt: str = "default", retries: int = 1, max_phrases: int = MAX_PHRASES, max_frames: int = 60
    ) -> None:
        options = {"retries": (retries, 0), "max_phrases": (max_phrases, 1), "max_frames": (max_frames, 1)}
        for name, (value, least) in options.items():
            if value < least:
                raise InputError(f"the translator's option '{name}' must be at least {least}, not {value}")
        self.template = load_prompt(prompt)
        self.retries, self.max_phrases, self.max_frames = retries, max_phrases, max_frames
        self._lexicon = LexiconTranslator(max_phrases=max_phrases)

    @abstractmethod
    def _chat(self, questions: Sequence[Question]) -> Sequence[str | AnswerError]:
        """The model's answer to each question, or the AnswerError that kept it from answering."""

    def translate(self, requests: Sequence[Request]) -> list[Translation]:
        """One translation per request; `attempts` counts the model's answers that it took."""
        dialogues: dict[tuple[object, ...], _Dialogue] = {}
        clips = [self._parts(request, dialogues) for request in requests]
        self._settle(list(dialogues.values()))
        return [self._join(parts) for parts in clips]

    def _parts(self, request: Request, dialogues: dict[tuple[object, ...], _Dialogue]) -> list[_Part]:
        parts = []
        for start in range(0, len(request.frames), self.max_frames):
            part = Request(request.frames[start : start + self.max_frames], request.vocabulary)
            parts.append(_Part(start, part, self._dialogue(part, dialogues) if any(part.frames) else None))
        return parts

    def _dialogue(self, request: Request, dialogues: dict[tuple[object, ...], _Dialogue]) -> _Dialogue:
        messages = build_messages(self.template, request, max_phrases=self.max_phrases)
        heard = tuple(bool(captions) for captions in request.frames)
        key = (*(tuple(sorted(message.items())) for message in messages), heard, request.vocabulary)
        return dialogues.setdefault(key, _Dialogue(Question(messages, len(request.frames), request.vocabulary)))

    def _settle(self, dialogues: list[_Dialogue]) -> None:
        """Asks every question until it is closed or its attempts are used up."""
        for _ in range(1 + self.retries):
            dialogues = [dialogue for dialogue in dialogues if not dialogue.closed]
            if not dialogues:
                return
            answers = self._chat([dialogue.next() for dialogue in dialogues])
            for dialogue, answer in zip(dialogues, answers, strict=True):
                self._take(dialogue, answer)

    def _take(self, dialogue: _Dialogue, answer: str | AnswerError) -> None:
        question = dialogue.question
        dialogue.attempts += 1
        try:
            if isinstance(answer, AnswerError):
                raise answer
            dialogue.answer = parse_answer(answer, question.frames, self.max_phrases, question.vocabulary)
            dialogue.closed = True
        except AnswerError as error:
            logger.debug("attempt %d: %s", dialogue.attempts, error.reason)
            dialogue.reasons.append(error.reason)
            dialogue.closed, dialogue.passing = error.final, error.passing
            if isinstance(answer, str):
                dialogue.follow_up = _correction(answer, error.reason, question.frames)

    def _join(self, parts: list[_Part]) -> Translation:
        asked = [part.dialogue for part in parts if part.dialogue]
        fallen = bool(asked) and all(dialogue.answer is None for dialogue in asked)
        notes = []
        for part in parts:
            if part.dialogue and (note := _note(part.dialogue)):
                end = part.start + len(part.request.frames) - 1
                notes.append(f"frames {part.start} to {end}: {note}" if len(parts) > 1 else note)
        return Translation(
            tuple(phrases for part in parts for phrases in self._phrases_of(part)),
            origin="lexicon" if fallen else "llm",
            note="; ".join(notes) or None,
            attempts=sum(dialogue.attempts for dialogue in asked),
            passing=any(dialogue.passing for dialogue in asked),
        )

    def _phrases_of(self, part: _Part) -> Frames:
        if part.dialogue is None:
            return ((),) * len(part.request.frames)
        answer = part.dialogue.answer
        if answer is None:
            answer = self._lexicon.translate([part.request])[0].frames
        # A frame in which nothing was heard stays empty, whatever the model makes of its neighbours.
        return tuple(phrases if captions else () for phrases, captions in zip(answer, part.request.frames, strict=True))


def _correction(answer: str, reason: str, frames: int) -> Conversation:
    """The turns that follow an unusable answer; without the answer's turn some chat templates refuse a second one."""
    return [
        {"role": "assistant", "content": clean_text(answer) or "-"},
        {
            "role": "user",
            "content": f"That cannot be used: {reason}. "
            f'Answer again with JSON only: {{"frames": [...]}} with exactly {frames} lists of short nouns.',
        },
    ]


def _note(dialogue: _Dialogue) -> str | None:
    if not dialogue.reasons:
        return None
    reasons = ", then ".join(dict.fromkeys(dialogue.reasons))
    if dialogue.answer is None:
        return f"the lexicon answered, because the language model failed {_times(dialogue.attempts)} ({reasons})"
    return f"the language model was asked {_times(dialogue.attempts)} ({reasons})"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
