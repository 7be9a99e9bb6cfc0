"""What every chat model has in common as a translator: asking, checking, asking again, falling back.

A backend adds only `_chat`. Everything that comes back passes `parse_answer`, so a caption or a model that goes astray
can at worst have a wrong noun looked for.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from openavs.errors import InputError
from openavs.stages.translators.base import Request, Translation
from openavs.stages.translators.lexicon_translator import LexiconTranslator
from openavs.stages.translators.parsing import ParseError, parse_answer
from openavs.stages.translators.prompting import (
    MAX_PHRASES,
    build_messages,
    clean_text,
    messages_about,
    prompt_for,
    runs_for,
)
from openavs.stages.translators.runs import CaptionRun
from openavs.stages.translators.schema import AnswerSchema, answer_tokens
from openavs.stages.translators.templates import Message, PromptTemplate, load_prompt
from openavs.utils.text import pluralize

__all__ = ["ChatQuestion", "ChatTranslator", "Conversation", "ParseError", "build_messages", "parse_answer"]

logger = logging.getLogger(__name__)

MAX_RUNS, MAX_FRAMES = 12, 60  # of one question

Conversation = list[Message]


@dataclass(frozen=True)
class ChatQuestion:
    """A conversation that ends with the user's turn, the form of its answer, and the answer's tokens at most."""

    messages: Conversation
    form: AnswerSchema
    max_tokens: int


@dataclass
class _Dialogue:
    """One distinct question: how often it was asked and what came of it."""

    question: ChatQuestion
    attempts: int = 0
    answer: tuple[tuple[str, ...] | None, ...] | None = None
    reasons: list[str] = field(default_factory=list)  # why each attempt failed
    follow_up: Conversation = field(default_factory=list)
    closed: bool = False  # answered, or in vain
    passing: bool = False  # a fault of the moment had a part in it

    def next(self) -> ChatQuestion:
        """The question with the turns that came of it so far."""
        return replace(self.question, messages=self.question.messages + self.follow_up)


@dataclass(frozen=True)
class _Part:
    """Runs of one clip that are asked about together, and their question (None: nothing is heard in them)."""

    runs: Sequence[CaptionRun]
    dialogue: _Dialogue | None

    @property
    def answers(self) -> Sequence[tuple[str, ...] | None]:
        """The model's phrases for each run; None for a run that it did not answer."""
        answer = self.dialogue.answer if self.dialogue else None
        return answer or [None] * len(self.runs)


class ChatTranslator(ABC):
    """Asks a chat model about whole clips.

    The prompt decides how: one that has the variable `runs` asks about runs of frames with equal captions, and the
    lexicon fills the runs that the answer leaves out; any other asks for a list per frame and takes all or nothing.
    Longer clips are asked in consecutive parts. Parts in which nothing was heard are not asked; identical ones are
    asked once. An answer that cannot be used is asked for `retries` times more, then the lexicon answers. Whatever the
    lexicon answers is said by the translation's `note` and `origins`. Frames without captions never get a phrase.

    Args:
        prompt: name or path of a prompt template.
        retries: further attempts after an unusable answer.
        max_phrases: phrases a frame keeps.
        max_runs: runs in one question, where the prompt asks about runs.
        max_frames: frames in one question, where it asks about frames.
        max_new_tokens: tokens of an answer at most; by default enough for the longest that the question allows.
    """

    def __init__(
        self,
        *,
        prompt: str = "default",
        retries: int = 1,
        max_phrases: int = MAX_PHRASES,
        max_runs: int = MAX_RUNS,
        max_frames: int = MAX_FRAMES,
        max_new_tokens: int | None = None,
    ) -> None:
        least = {"retries": 0, "max_phrases": 1, "max_runs": 1, "max_frames": 1, "max_new_tokens": 1}
        values = (retries, max_phrases, max_runs, max_frames, max_new_tokens)
        for (name, lowest), value in zip(least.items(), values, strict=True):
            if value is not None and value < lowest:
                raise InputError(f"the translator's option '{name}' must be at least {lowest}, not {value}")
        self.template = load_prompt(prompt)
        self.retries, self.max_phrases, self.max_new_tokens = retries, max_phrases, max_new_tokens
        self.max_runs, self.max_frames = max_runs, max_frames
        self._lexicon = LexiconTranslator(max_phrases=max_phrases)

    @abstractmethod
    def _chat(self, questions: Sequence[ChatQuestion]) -> Sequence[str | ParseError]:
        """The model's answer to each question, or the AnswerError that kept it from answering."""

    def translate(self, requests: Sequence[Request]) -> list[Translation]:
        """One translation per request; `attempts` counts the model's answers that it took."""
        dialogues: dict[tuple[object, ...], _Dialogue] = {}
        clips = [self._parts(request, dialogues) for request in requests]
        self._settle(list(dialogues.values()))
        return [self._join(request, parts) for request, parts in zip(requests, clips, strict=True)]

    def _parts(self, request: Request, dialogues: dict[tuple[object, ...], _Dialogue]) -> list[_Part]:
        template = prompt_for(self.template, request.vocabulary)
        runs, most = runs_for(template, request), self.max_runs if template.by_runs else self.max_frames
        parts = [runs[start : start + most] for start in range(0, len(runs), most)]
        return [
            _Part(part, self._dialogue(template, part, request.vocabulary, dialogues) if _captioned(part) else None)
            for part in parts
        ]

    def _dialogue(
        self,
        template: PromptTemplate,
        runs: Sequence[CaptionRun],
        vocabulary: tuple[str, ...] | None,
        dialogues: dict[tuple[object, ...], _Dialogue],
    ) -> _Dialogue:
        form = AnswerSchema(len(runs), self.max_phrases, vocabulary, template.by_runs)
        messages = messages_about(template, runs, vocabulary, self.max_phrases)
        question = ChatQuestion(messages, form, self.max_new_tokens or answer_tokens(form))
        heard = tuple(bool(run.captions) for run in runs)
        key = (*(tuple(sorted(message.items())) for message in messages), heard, form)
        return dialogues.setdefault(key, _Dialogue(question))

    def _settle(self, dialogues: list[_Dialogue]) -> None:
        """Asks every question until it is closed or its attempts are used up."""
        for _ in range(1 + self.retries):
            dialogues = [dialogue for dialogue in dialogues if not dialogue.closed]
            if not dialogues:
                return
            answers = self._chat([dialogue.next() for dialogue in dialogues])
            for dialogue, answer in zip(dialogues, answers, strict=True):
                self._take(dialogue, answer)

    def _take(self, dialogue: _Dialogue, answer: str | ParseError) -> None:
        question = dialogue.question
        dialogue.attempts += 1
        try:
            if isinstance(answer, ParseError):
                raise answer
            dialogue.answer = parse_answer(answer, question.form)
            dialogue.closed = True
        except ParseError as error:
            logger.debug("attempt %d: %s", dialogue.attempts, error.reason)
            dialogue.reasons.append(error.reason)
            dialogue.closed, dialogue.passing = error.final, error.passing
            if isinstance(answer, str):
                dialogue.follow_up = _correction(answer, error.reason, question.form)

    def _join(self, request: Request, parts: list[_Part]) -> Translation:
        frames: list[tuple[str, ...]] = [()] * len(request.frames)
        origins = ["llm"] * len(request.frames)
        pairs = [pair for part in parts for pair in zip(part.runs, part.answers, strict=True) if pair[0].captions]
        for run, phrases in pairs:
            origin = "lexicon" if phrases is None else "llm"
            own = self._looked_up(run, request.vocabulary) if phrases is None else phrases
            frames[run.start : run.stop] = [own] * (run.stop - run.start)
            origins[run.start : run.stop] = [origin] * (run.stop - run.start)
        asked = [part.dialogue for part in parts if part.dialogue]
        fallen = bool(pairs) and all(phrases is None for _, phrases in pairs)
        return Translation(
            tuple(frames),
            origin="lexicon" if fallen else "llm",
            note="; ".join(_notes(parts)) or None,
            attempts=sum(dialogue.attempts for dialogue in asked),
            passing=any(dialogue.passing for dialogue in asked),
            origins=tuple(origins) if "lexicon" in origins and not fallen else None,
        )

    def _looked_up(self, run: CaptionRun, vocabulary: tuple[str, ...] | None) -> tuple[str, ...]:
        return self._lexicon.translate([Request((run.captions,), vocabulary)])[0].frames[0]


def _captioned(runs: Sequence[CaptionRun]) -> bool:
    return any(run.captions for run in runs)


def _correction(answer: str, reason: str, form: AnswerSchema) -> Conversation:
    """The turns that follow an unusable answer; without the answer's turn some chat templates refuse a second one."""
    return [
        {"role": "assistant", "content": clean_text(answer) or "-"},
        {
            "role": "user",
            "content": f"That cannot be used: {reason}. Answer again with JSON only: {form.described}.",
        },
    ]


def _notes(parts: Sequence[_Part]) -> Iterator[str]:
    """A clause for every part whose question failed, and one for all runs that were left out of answers."""
    for part in parts:
        if part.dialogue and part.dialogue.reasons:
            where = f"frames {part.runs[0].start} to {part.runs[-1].stop - 1}: " if len(parts) > 1 else ""
            yield where + _note(part.dialogue)
    answered = [answer for part in parts if part.dialogue and part.dialogue.answer for answer in part.dialogue.answer]
    if missing := answered.count(None):
        yield (
            f"the lexicon answered for {missing} of {pluralize(len(answered), 'run')} of equal captions, which the "
            "language model left out or answered without a usable phrase"
        )


def _note(dialogue: _Dialogue) -> str:
    reasons = ", then ".join(dict.fromkeys(dialogue.reasons))
    if dialogue.answer is None:
        return f"the lexicon answered, because the language model failed {_times(dialogue.attempts)} ({reasons})"
    return f"the language model was asked {_times(dialogue.attempts)} ({reasons})"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
