"""What a language model answered: parsed, checked, and trusted with nothing but short noun phrases.

The only way out besides phrases is `ParseError`; its reason is in our own words and never quotes the answer.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from openavs.stages.translators.class_matching import match_classes
from openavs.stages.translators.schema import AnswerSchema
from openavs.utils.text import pluralize

EMPTY = "the answer is empty"
REFUSED = "the model refused to answer"
TRUNCATED = "the JSON breaks off or is malformed"
NO_JSON = "the answer holds no JSON"
WRONG_SHAPE = "the JSON has another form than the one asked for"
UNUSABLE = "none of the answered phrases is a short noun phrase"
NOT_IN_VOCABULARY = "none of the answered phrases is in the vocabulary"
TOO_LONG = "the question is longer than the model's context"

_CHARACTERS = 100_000  # of an answer that are read
_TRIES = 64  # places where JSON may begin
_PHRASE = re.compile(r"(?=.{1,40}$)[a-z]+(?:['-][a-z]+)*'?(?: [a-z]+(?:['-][a-z]+)*'?){0,3}")
_BEGINS = re.compile(r"[\[{]")
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


class ParseError(Exception):
    """An answer that cannot be used; `reason` is a short clause such as "the answer is empty".

    `final` says that asking again now would be in vain, `passing` that it is a fault of the moment.
    """

    def __init__(self, reason: str, *, final: bool = False, passing: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.final, self.passing = reason, final, passing


Row = list[str] | None
"""What an answer says of one run or frame; None for nothing that can be read."""


def parse_answer(text: str, form: AnswerSchema) -> tuple[tuple[str, ...] | None, ...]:
    """The phrases of each run or frame, in lower case or as the vocabulary spells them, without duplicates.

    Reads `{"0": ["dog"], "1": []}` or `{"frames": [["dog"], []]}`, also among chatter or in a code fence; of several
    the last counts. What is no short noun phrase, or names nothing that can be seen ("music", "silence"), is left out.

    Returns:
        One tuple of at most `form.max_phrases` phrases per run or frame. A run that is missing, malformed or without a
        usable phrase is None, and keys that are no run are ignored; a frame is never None.

    Raises:
        AnswerError: the answer is empty, a refusal, broken JSON, of another form or number of frames, or without any
            usable run or phrase.
    """
    body = re.split(r"</think\s*>", text[-_CHARACTERS:])[-1].strip()
    if not body:
        raise ParseError(EMPTY)
    rows = _rows(body, form)
    if len(rows) != form.count:
        raise ParseError(f"the answer has {pluralize(len(rows), 'frame')} instead of {form.count}")
    kept = [None if row is None else _phrases(row, form) for row in rows]
    if not any(kept) and None in kept and not (form.by_runs and () in kept):
        raise ParseError(UNUSABLE if form.vocabulary is None else NOT_IN_VOCABULARY)
    return tuple(kept) if form.by_runs else tuple(phrases or () for phrases in kept)


def _rows(body: str, form: AnswerSchema) -> list[Row]:
    values = list(_values(body))
    rows = _by_runs(body, values, form) if form.by_runs else _by_frames(values)
    if rows is not None:
        return rows
    if values:
        raise ParseError(WRONG_SHAPE)
    if _BEGINS.search(body):
        raise ParseError(TRUNCATED)
    raise ParseError(REFUSED if _REFUSAL.search(body) else NO_JSON)


def _by_frames(values: Sequence[Any]) -> list[Row] | None:
    """The lists of words in the last `{"frames": ...}`, else in the last bare list of lists; None if there is none."""
    objects = [value["frames"] for value in values if isinstance(value, dict) and "frames" in value]
    lists = [value for value in values if isinstance(value, list)]
    for value in (*reversed(objects), *reversed(lists)):
        rows: list[Row] = [_row(entry) for entry in value] if isinstance(value, list) else [None]
        if None not in rows:
            return rows
    return None


def _by_runs(body: str, values: Sequence[Any], form: AnswerSchema) -> list[Row] | None:
    """The lists of words in the last object with a run in it; None if there is none.

    An answer that breaks off counts up to its last complete list.
    """
    cut = list(_values(body[: body.rfind("]") + 1] + "}"))
    for table in reversed(max(_objects(values), _objects(cut), key=len)):
        rows = [_row(table[key]) if key in table else None for key in form.keys]
        if any(row is not None for row in rows):
            return rows
    return None


def _objects(values: Sequence[Any]) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)]


def _row(value: Any) -> Row:
    row = [value] if isinstance(value, str) else [] if value is None else value
    return row if isinstance(row, list) and all(isinstance(entry, str) for entry in row) else None


def _values(body: str) -> Iterator[Any]:
    """The outermost JSON objects and lists of a text, from left to right."""
    decoder = json.JSONDecoder()
    position = 0
    for _ in range(_TRIES):
        start = _BEGINS.search(body, position)
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


def _phrases(row: Sequence[str], form: AnswerSchema) -> tuple[str, ...] | None:
    """The usable phrases of a row; None if it has words but none that can be used."""
    vocabulary = form.vocabulary
    tidy = [_tidy(entry) for entry in row]
    usable = [phrase for phrase in tidy if phrase not in _NOTHING or _listed(phrase, vocabulary)]
    if vocabulary is None:
        kept = [phrase for phrase in usable if _PHRASE.fullmatch(phrase)]
    else:
        kept = [word for phrase in usable if len(phrase) <= 80 for word in match_classes(phrase, vocabulary)]
    if not kept and any(_tidy(entry) not in _NOTHING for entry in row if entry.strip()):
        return None
    return tuple(dict.fromkeys(kept))[: form.max_phrases]


def _listed(phrase: str, vocabulary: Sequence[str] | None) -> bool:
    return vocabulary is not None and phrase in {_tidy(word) for word in vocabulary}


def _tidy(entry: str) -> str:
    """Lower case, single spaces, no accents, no article and no closing punctuation."""
    plain = unicodedata.normalize("NFKD", entry[:200].replace("’", "'").replace("_", " ").lower())
    letters = "".join(character for character in plain if not unicodedata.combining(character))
    words = " ".join(letters.split()).strip(" .,;:!?\"'")
    return re.sub(r"^(?:an?|the) (?=.)", "", words)
