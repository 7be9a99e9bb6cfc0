"""What a language model answered: parsed, checked, and trusted with nothing but short noun phrases.

The only way out besides phrases is `AnswerError`; its reason is in our own words and never quotes the answer.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from openavs.spelling import counted
from openavs.translators.closing import to_vocabulary

EMPTY = "the answer is empty"
REFUSED = "the model refused to answer"
TRUNCATED = "the JSON breaks off or is malformed"
NO_JSON = "the answer holds no JSON"
WRONG_SHAPE = 'the JSON is not {"frames": [[...], ...]} with one list of words per frame'
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


class AnswerError(Exception):
    """An answer that cannot be used; `reason` is a short clause such as "the answer is empty".

    `final` says that asking again now would be in vain, `passing` that it is a fault of the moment.
    """

    def __init__(self, reason: str, *, final: bool = False, passing: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.final, self.passing = reason, final, passing


def parse_answer(
    text: str, frames: int, max_phrases: int = 4, vocabulary: Sequence[str] | None = None
) -> tuple[tuple[str, ...], ...]:
    """The phrases of each frame, at most `max_phrases`, lower case, none twice; a vocabulary's own words where given.

    Reads `{"frames": [["dog"], []]}`, also among chatter or in a code fence; of several the last counts. What is no
    short noun phrase, or names nothing that can be seen ("music", "silence"), is left out. Raises AnswerError for an
    answer that is empty, a refusal, broken JSON, of another shape or number of frames, or whose every phrase is bad.
    """
    body = re.split(r"</think\s*>", text[-_CHARACTERS:])[-1].strip()
    if not body:
        raise AnswerError(EMPTY)
    rows = _rows(body)
    if len(rows) != frames:
        raise AnswerError(f"the answer has {counted(len(rows), 'frame')} instead of {frames}")
    kept = tuple(_phrases(row, max_phrases, vocabulary) for row in rows)
    if not any(kept) and any(_tidy(entry) not in _NOTHING for row in rows for entry in row if entry.strip()):
        raise AnswerError(UNUSABLE if vocabulary is None else NOT_IN_VOCABULARY)
    return kept


def _rows(body: str) -> list[list[str]]:
    """The lists of words in the last `{"frames": ...}` of the text, else in its last bare list of lists."""
    values = list(_values(body))
    objects = [_shape(value["frames"]) for value in values if isinstance(value, dict) and "frames" in value]
    lists = [_shape(value) for value in values if isinstance(value, list)]
    for rows in (*reversed(objects), *reversed(lists)):
        if rows is not None:
            return rows
    if values:
        raise AnswerError(WRONG_SHAPE)
    if _BEGINS.search(body):
        raise AnswerError(TRUNCATED)
    raise AnswerError(REFUSED if _REFUSAL.search(body) else NO_JSON)


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


def _shape(value: Any) -> list[list[str]] | None:
    if not isinstance(value, list):
        return None
    rows = [[row] if isinstance(row, str) else [] if row is None else row for row in value]
    if all(isinstance(row, list) and all(isinstance(entry, str) for entry in row) for row in rows):
        return rows
    return None


def _phrases(row: Sequence[str], max_phrases: int, vocabulary: Sequence[str] | None) -> tuple[str, ...]:
    tidy = [_tidy(entry) for entry in row]
    usable = [phrase for phrase in tidy if phrase not in _NOTHING or _listed(phrase, vocabulary)]
    if vocabulary is None:
        kept = [phrase for phrase in usable if _PHRASE.fullmatch(phrase)]
    else:
        kept = [word for phrase in usable if len(phrase) <= 80 for word in to_vocabulary(phrase, vocabulary)]
    return tuple(dict.fromkeys(kept))[:max_phrases]


def _listed(phrase: str, vocabulary: Sequence[str] | None) -> bool:
    return vocabulary is not None and phrase in {_tidy(word) for word in vocabulary}


def _tidy(entry: str) -> str:
    """Lower case, single spaces, no accents, no article and no closing punctuation."""
    plain = unicodedata.normalize("NFKD", entry[:200].replace("’", "'").replace("_", " ").lower())
    letters = "".join(character for character in plain if not unicodedata.combining(character))
    words = " ".join(letters.split()).strip(" .,;:!?\"'")
    return re.sub(r"^(?:an?|the) (?=.)", "", words)
