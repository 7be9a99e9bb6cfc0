"""Answers of language models: their JSON schema, and a parser that accepts nothing but short noun phrases.

An answer yields phrases or a `ParseError`, whose reason is one of the sentences below and never quotes the answer.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from openavs.models.chat_api.endpoint import EMPTY, REFUSED, ParseError
from openavs.stages.prompting import MAX_PHRASES, clean_text
from openavs.stages.vocabulary import match_classes
from openavs.utils.text import pluralize

# A model reads these reasons when it is requested to correct its answer, so a change of words can change its answers.
TRUNCATED = "the JSON breaks off or is malformed"
NO_JSON = "the answer holds no JSON"
WRONG_SHAPE = "the JSON has another form than the one asked for"  # language: ok
UNUSABLE = "none of the answered phrases is a short noun phrase"
NOT_IN_VOCABULARY = "none of the answered phrases is in the vocabulary"

_PATTERN = "^[a-z][a-z '-]{0,39}$"
_MAX_ENUM = 250  # classes: more make a grammar slow to compile, and OpenAI then limits their total length

# Tokens of the JSON around all runs, of a run's key and brackets even if indented, of a phrase with quotes and comma.
# In GPT-2's and Whisper's byte-pair encodings four English words of 40 letters with their quotes and comma have 10.
_TOKENS_AROUND, _TOKENS_PER_RUN, _TOKENS_PER_PHRASE = 48, 16, 12
_TOKEN_STEP = 256  # limits are multiples of it, so that requests of similar size share a batch

_MAX_ANSWER = 100_000  # characters that are read
_MAX_JSON_STARTS = 64  # positions at which JSON is searched
_PHRASE = re.compile(r"(?=.{1,40}$)[a-z]+(?:['-][a-z]+)*'?(?: [a-z]+(?:['-][a-z]+)*'?){0,3}")
_JSON_START = re.compile(r"[\[{]")
_WORDS = """
    sound sounds sounding noise noises music song audio silence silent quiet none nothing no null nil empty n/a na
    unknown unclear unidentified unsure other something anything object objects thing things source sources
    background ambience ambient environment atmosphere speech voice video frame frames scene recording
"""
_NOTHING = frozenset(_WORDS.split())
_REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|unable to|as an ai|(?:can ?not|can['’]?t|won['’]?t|will not|not able to)\s+"
    r"(?:\w+\s+){0,3}?(?:help|assist|answer|comply|provide|determine|do|fulfil|fulfill|identify|process))\b",
    re.IGNORECASE,
)


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
        """Keys of an answer by runs."""
        return [str(number) for number in range(self.count)]

    @property
    def description(self) -> str:
        """Sentence part that describes the form to a model whose answer was unusable."""
        if self.by_runs:
            return f'{{"0": [...], ...}} with a list of short nouns for every key from "0" to "{self.count - 1}"'
        return f'{{"frames": [...]}} with exactly {self.count} lists of short nouns'

    @property
    def max_tokens(self) -> int:
        """Upper bound of the tokens of an answer, in steps of 256.

        A class may take one token for two ASCII letters and up to three for any other.
        """
        longest = max((len(word.encode()) - len(word) // 2 + 4 for word in self.vocabulary or ()), default=0)
        per_run = _TOKENS_PER_RUN + self.max_phrases * max(_TOKENS_PER_PHRASE, longest)
        return -(-(_TOKENS_AROUND + self.count * per_run) // _TOKEN_STEP) * _TOKEN_STEP

    def to_json_schema(self) -> dict[str, Any]:
        """Return the JSON schema of an answer.

        It is limited to what OpenAI's strict mode, xgrammar and llama.cpp all accept: no string lengths (a pattern
        bounds them), every property required, no others.
        """
        phrases = {"type": "array", "maxItems": self.max_phrases, "items": self._phrase_schema()}
        rows = {"type": "array", "minItems": self.count, "maxItems": self.count, "items": phrases}
        properties = dict.fromkeys(self.keys, phrases) if self.by_runs else {"frames": rows}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def _phrase_schema(self) -> dict[str, Any]:
        if self.vocabulary is None:
            return {"type": "string", "pattern": _PATTERN}
        classes = list(dict.fromkeys(filter(None, map(clean_text, self.vocabulary))))
        return {"type": "string", "enum": classes} if 0 < len(classes) <= _MAX_ENUM else {"type": "string"}


Row = list[str] | None
"""Words of one run or frame; None if they are missing or malformed."""


def parse_answer(text: str, schema: AnswerSchema) -> tuple[tuple[str, ...] | None, ...]:
    """Parse the phrases of each run or frame, in lower case or as the vocabulary spells them, without duplicates.

    Reads `{"0": ["dog"], "1": []}` or `{"frames": [["dog"], []]}`, also within other text or a code fence; of several,
    the last counts. Entries that are not short noun phrases, or name nothing visible ("music", "silence"), are removed.

    Returns:
        One tuple of at most `schema.max_phrases` phrases per run or frame. A run that is missing, malformed or without
        a usable phrase becomes None, and keys of other runs are ignored; a frame is never None.

    Raises:
        ParseError: the answer is empty, a refusal, broken JSON, of another form or number of frames, or without any
            usable run or phrase.
    """
    body = re.split(r"</think\s*>", text[-_MAX_ANSWER:])[-1].strip()
    if not body:
        raise ParseError(EMPTY)
    rows = _rows(body, schema)
    if len(rows) != schema.count:
        raise ParseError(f"the answer has {pluralize(len(rows), 'frame')} instead of {schema.count}")
    kept = [None if row is None else _usable_phrases(row, schema) for row in rows]
    if not any(kept) and None in kept and not (schema.by_runs and () in kept):
        raise ParseError(UNUSABLE if schema.vocabulary is None else NOT_IN_VOCABULARY)
    return tuple(kept) if schema.by_runs else tuple(phrases or () for phrases in kept)


def _rows(body: str, schema: AnswerSchema) -> list[Row]:
    values = list(_json_values(body))
    rows = _rows_by_run(body, values, schema) if schema.by_runs else _rows_by_frame(values)
    if rows is not None:
        return rows
    if values:
        raise ParseError(WRONG_SHAPE)
    if _JSON_START.search(body):
        raise ParseError(TRUNCATED)
    raise ParseError(REFUSED if _REFUSAL.search(body) else NO_JSON)


def _rows_by_frame(values: Sequence[Any]) -> list[Row] | None:
    """The lists of words in the last `{"frames": ...}`, else in the last bare list of lists; None without any."""
    objects = [value["frames"] for value in values if isinstance(value, dict) and "frames" in value]
    lists = [value for value in values if isinstance(value, list)]
    for value in (*reversed(objects), *reversed(lists)):
        rows: list[Row] = [_row(entry) for entry in value] if isinstance(value, list) else [None]
        if None not in rows:
            return rows
    return None


def _rows_by_run(body: str, values: Sequence[Any], schema: AnswerSchema) -> list[Row] | None:
    """The lists of words in the last object that has a run; None without any.

    A truncated answer counts up to its last complete list.
    """
    repaired = list(_json_values(body[: body.rfind("]") + 1] + "}"))
    for table in reversed(max(_objects(values), _objects(repaired), key=len)):
        rows = [_row(table[key]) if key in table else None for key in schema.keys]
        if any(row is not None for row in rows):
            return rows
    return None


def _objects(values: Sequence[Any]) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)]


def _row(value: Any) -> Row:
    row = [value] if isinstance(value, str) else [] if value is None else value
    return row if isinstance(row, list) and all(isinstance(entry, str) for entry in row) else None


def _json_values(body: str) -> Iterator[Any]:
    """The outermost JSON objects and lists of a text, from left to right."""
    decoder = json.JSONDecoder()
    position = 0
    for _ in range(_MAX_JSON_STARTS):
        start = _JSON_START.search(body, position)
        if start is None:
            return
        try:
            value, position = decoder.raw_decode(body, start.start())
        except (ValueError, RecursionError):
            if body[start.end() :].lstrip().startswith('"frames"'):
                return  # the answer itself is broken: a complete list inside of it is not the answer
            position = start.end()
        else:
            yield value


def _usable_phrases(row: Sequence[str], schema: AnswerSchema) -> tuple[str, ...] | None:
    """The usable phrases of a row; None if it has words but none that are usable."""
    vocabulary = schema.vocabulary
    classes = {_normalized(word) for word in vocabulary or ()}
    phrases = [phrase for phrase in map(_normalized, row) if phrase not in _NOTHING or phrase in classes]
    if vocabulary is None:
        kept = [phrase for phrase in phrases if _PHRASE.fullmatch(phrase)]
    else:
        kept = [word for phrase in phrases if len(phrase) <= 80 for word in match_classes(phrase, vocabulary)]
    if not kept and any(_normalized(entry) not in _NOTHING for entry in row if entry.strip()):
        return None
    return tuple(dict.fromkeys(kept))[: schema.max_phrases]


def _normalized(entry: str) -> str:
    """Lower case, single spaces, no accents, no article and no closing punctuation."""
    decomposed = unicodedata.normalize("NFKD", entry[:200].replace("’", "'").replace("_", " ").lower())
    letters = "".join(character for character in decomposed if not unicodedata.combining(character))
    words = " ".join(letters.split()).strip(" .,;:!?\"'")
    return re.sub(r"^(?:an?|the) (?=.)", "", words)
