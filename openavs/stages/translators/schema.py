"""The form of an answer: what it must hold, its JSON schema, and how many tokens it may take.

The schema is limited to what OpenAI's strict mode, xgrammar and llama.cpp all accept: no string lengths (a pattern
bounds them), every property required, no others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openavs.stages.translators.prompting import MAX_PHRASES, clean_text

_PATTERN = "^[a-z][a-z '-]{0,39}$"
_CLASSES = 250  # more make a grammar slow to compile, and OpenAI then bounds their total length

# Tokens: of the JSON around all runs, of a run's key and brackets even if indented, of a phrase with quotes and comma.
# In GPT-2's and Whisper's byte-pair encodings four English words of 40 letters with their quotes and comma have 10.
_AROUND, _PER_RUN, _PER_PHRASE = 48, 16, 12
_STEP = 256  # budgets are multiples of it, so that questions of similar size share a batch


@dataclass(frozen=True)
class AnswerSchema:
    """At most `max_phrases` phrases for each of `count` runs or frames, all from the vocabulary if there is one.

    With `by_runs` the answer is an object with the numbers of the runs as its keys, else one list for all frames.
    """

    count: int
    max_phrases: int = MAX_PHRASES
    vocabulary: tuple[str, ...] | None = None
    by_runs: bool = False

    @property
    def keys(self) -> list[str]:
        """The keys of an answer by runs."""
        return [str(number) for number in range(self.count)]

    @property
    def described(self) -> str:
        """The form in words, for a model whose answer could not be used."""
        if self.by_runs:
            return f'{{"0": [...], ...}} with a list of short nouns for every key from "0" to "{self.count - 1}"'
        return f'{{"frames": [...]}} with exactly {self.count} lists of short nouns'


def answer_schema(form: AnswerSchema) -> dict[str, Any]:
    """The JSON schema of an answer."""
    phrases = {"type": "array", "maxItems": form.max_phrases, "items": _phrase(form)}
    rows = {"type": "array", "minItems": form.count, "maxItems": form.count, "items": phrases}
    properties = dict.fromkeys(form.keys, phrases) if form.by_runs else {"frames": rows}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def answer_tokens(form: AnswerSchema) -> int:
    """An upper bound of the tokens of an answer, in steps of 256.

    A class may take one token for two ASCII letters and up to three for any other.
    """
    longest = max((len(word.encode()) - len(word) // 2 + 4 for word in form.vocabulary or ()), default=0)
    tokens = _AROUND + form.count * (_PER_RUN + form.max_phrases * max(_PER_PHRASE, longest))
    return -(-tokens // _STEP) * _STEP


def _phrase(form: AnswerSchema) -> dict[str, Any]:
    if form.vocabulary is None:
        return {"type": "string", "pattern": _PATTERN}
    classes = list(dict.fromkeys(filter(None, map(clean_text, form.vocabulary))))
    return {"type": "string", "enum": classes} if 0 < len(classes) <= _CLASSES else {"type": "string"}
