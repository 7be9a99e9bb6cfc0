"""What every chat model has in common as a translator: asking, checking, asking again, falling back.

A backend adds only `_chat`. Everything that comes back passes `parse_answer`, so a caption or a model that goes astray
can at worst have a wrong noun looked for.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from openavs.prompts import Message, load_prompt
from openavs.translators.answers import AnswerError, parse_answer
from openavs.translators.base import Request, Translation
from openavs.translators.lexicon import LexiconTranslator
from openavs.translators.messages import MAX_PHRASES, build_messages, clean_text
from openavs.types import InputError

__all__ = ["AnswerError", "ChatTranslator", "Conversation", "build_messages", "parse_answer"]

logger = logging.getLogger(__name__)

Conversation = list[Message]
Frames = tuple[tuple[str, ...], ...]


@dataclass
class _Question:
    """One distinct conversation: what is asked, how often it was, and what came of it."""

    messages: Conversation
    frames: int
    vocabulary: tuple[str, ...] | None
    attempts: int = 0
    answer: Frames | None = None
    reasons: list[str] = field(default_factory=list)  # why each attempt failed
    follow_up: Conversation = field(default_factory=list)


@dataclass
class _Part:
    """A stretch of one clip: the frames from `start` on, and the question that was asked about them (None: none)."""

    start: int
    request: Request
    question: _Question | None


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
    def _chat(self, conversations: Sequence[Conversation]) -> Sequence[str | AnswerError]:
        """The model's answer to each conversation, or the AnswerError that kept it from answering."""

    def translate(self, requests: Sequence[Request]) -> list[Translation]:
        """One translation per request; `attempts` counts the model's answers that it took."""
        questions: dict[tuple[object, ...], _Question] = {}
        clips = [self._parts(request, questions) for request in requests]
        self._ask(list(questions.values()))
        return [self._join(parts) for parts in clips]

    def _parts(self, request: Request, questions: dict[tuple[object, ...], _Question]) -> list[_Part]:
        parts = []
        for start in range(0, len(request.frames), self.max_frames):
            part = Request(request.frames[start : start + self.max_frames], request.vocabulary)
            parts.append(_Part(start, part, self._question(part, questions) if any(part.frames) else None))
        return parts

    def _question(self, request: Request, questions: dict[tuple[object, ...], _Question]) -> _Question:
        messages = build_messages(self.template, request, max_phrases=self.max_phrases)
        heard = tuple(bool(captions) for captions in request.frames)
        key = (*(tuple(sorted(message.items())) for message in messages), heard, request.vocabulary)
        return questions.setdefault(key, _Question(messages, len(request.frames), request.vocabulary))

    def _ask(self, questions: list[_Question]) -> None:
        for _ in range(1 + self.retries):
            if not questions:
                return
            answers = self._chat([question.messages + question.follow_up for question in questions])
            for question, answer in zip(questions, answers, strict=True):
                self._take(question, answer)
            questions = [question for question in questions if question.answer is None]

    def _take(self, question: _Question, answer: str | AnswerError) -> None:
        question.attempts += 1
        try:
            if isinstance(answer, AnswerError):
                raise answer
            question.answer = parse_answer(answer, question.frames, self.max_phrases, question.vocabulary)
        except AnswerError as error:
            logger.debug("attempt %d: %s", question.attempts, error.reason)
            question.reasons.append(error.reason)
            if isinstance(answer, str):
                question.follow_up = _correction(answer, error.reason, question.frames)

    def _join(self, parts: list[_Part]) -> Translation:
        asked = [part.question for part in parts if part.question]
        fallen = bool(asked) and all(question.answer is None for question in asked)
        notes = []
        for part in parts:
            if part.question and (note := _note(part.question)):
                end = part.start + len(part.request.frames) - 1
                notes.append(f"frames {part.start} to {end}: {note}" if len(parts) > 1 else note)
        return Translation(
            tuple(phrases for part in parts for phrases in self._phrases(part)),
            origin="lexicon" if fallen else "llm",
            note="; ".join(notes) or None,
            attempts=sum(question.attempts for question in asked),
        )

    def _phrases(self, part: _Part) -> Frames:
        if part.question is None:
            return ((),) * len(part.request.frames)
        answer = part.question.answer
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


def _note(question: _Question) -> str | None:
    if not question.reasons:
        return None
    reasons = ", then ".join(dict.fromkeys(question.reasons))
    if question.answer is None:
        return f"the lexicon answered, because the language model failed {question.attempts} times ({reasons})"
    return f"the language model was asked {question.attempts} times ({reasons})"
