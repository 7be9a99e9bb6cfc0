"""Answers about numbered candidates: their JSON schema, and a parser that accepts nothing but decisions.

Every answer becomes a `Judgment`: accept, reject or unsure for numbers that exist. A broken answer, or one that follows
an order in a caption or a frame, can at worst drop a segment or keep it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from openavs.models.chat_api.endpoint import EMPTY
from openavs.stages.prompting import clean_text
from openavs.structures.types import Decision
from openavs.utils.text import pluralize

# A model reads these when it is requested to correct its answer, so a change of words can change its answers.
NO_JSON = "the answer holds no JSON object with 'candidates'"
CONTRADICTION = "it answers that nothing makes the sound, and accepts a candidate"

SCHEMA_NAME = "sounding_candidates"
DECISIONS: Mapping[str, Decision] = {"accept": "kept", "reject": "rejected", "unsure": "unresolved"}

_MAX_ANSWER = 100_000  # characters that are read
_MAX_JSON_STARTS = 64  # positions at which JSON is searched
_TOKENS_AROUND, _TOKENS_EACH = 96, 64  # of an answer, and of a decision with its reason


@dataclass(frozen=True)
class Judgment:
    """The decisions of one or two answers.

    Attributes:
        answers: the answers as the model gave them.
        decisions: decision and reason by number; numbers without a valid decision are left out.
        none: whether nothing in the picture makes the sound.
        problems: what is wrong with the answers; none if the first is complete.
        transient: a temporary fault, such as a server outage, had an influence.
        final: a repetition would fail, too.
    """

    answers: tuple[str, ...] = ()
    decisions: Mapping[int, tuple[Decision, str]] = field(default_factory=dict)
    none: bool = False
    problems: tuple[str, ...] = ()
    transient: bool = False
    final: bool = False

    def after(self, first: Judgment) -> Judgment:
        """Return the judgment of this answer and the one before it; this one's decisions have precedence."""
        return Judgment(
            (*first.answers, *self.answers),
            {**first.decisions, **self.decisions},
            self.none or (first.none and not self.decisions),
            tuple(dict.fromkeys((*first.problems, *self.problems))),
            first.transient or self.transient,
            self.final,
        )


def answer_schema(count: int) -> dict[str, Any]:
    """Return the JSON schema of an answer about `count` candidates; the reason precedes the decision."""
    decision = {
        "number": {"type": "integer", "minimum": 1, "maximum": count},
        "reason": {"type": "string"},
        "decision": {"type": "string", "enum": list(DECISIONS)},
    }
    row = {"type": "object", "properties": decision, "required": list(decision), "additionalProperties": False}
    properties = {"candidates": {"type": "array", "items": row}, "none": {"type": "boolean"}}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def answer_tokens(count: int) -> int:
    """Return the maximum tokens of an answer about `count` candidates."""
    return _TOKENS_AROUND + _TOKENS_EACH * count


def parse_judgment(text: str, count: int) -> Judgment:
    """Read the decisions of an answer about the candidates 1 to `count`.

    Reads `{"candidates": [{"number": 1, "reason": "...", "decision": "accept"}], "none": false}`, also within other
    text or a code fence; of several objects the last counts. Entries for other numbers, malformed ones and numbers that
    are decided twice in different ways are left out. `none` rejects all.
    """
    body = re.split(r"</think\s*>", text[-_MAX_ANSWER:])[-1].strip()
    found = [value for value in _json_objects(body) if isinstance(value.get("candidates"), list)]
    if not found:
        return Judgment((text,), problems=(NO_JSON if body else EMPTY,))
    decisions: dict[int, tuple[Decision, str]] = {}
    unknown, malformed, double = set[str](), 0, set[int]()
    for row in found[-1]["candidates"]:
        number, decision = (row.get("number"), row.get("decision")) if isinstance(row, dict) else (None, None)
        if not isinstance(number, int) or isinstance(number, bool) or decision not in [*DECISIONS]:
            malformed += 1
        elif not 1 <= number <= count:
            unknown.add(str(number)[:20])
        elif number in decisions and decisions[number][0] != DECISIONS[decision]:
            double.add(number)
        else:
            reason = row.get("reason")
            decisions[number] = DECISIONS[decision], clean_text(reason) if isinstance(reason, str) else ""
    none = found[-1].get("none") is True
    if none and any(decision != "rejected" for decision, _ in decisions.values()):
        return Judgment((text,), problems=(CONTRADICTION,))
    decisions = {number: own for number, own in decisions.items() if number not in double}
    if none:
        decisions = {n: decisions.get(n, ("rejected", "nothing shown makes the sound")) for n in range(1, count + 1)}
    return Judgment((text,), decisions, none, tuple(_problems(decisions, count, unknown, malformed, len(double))))


def _problems(decided: Mapping[int, Any], count: int, unknown: set[str], malformed: int, double: int) -> Iterator[str]:
    if unknown:
        yield f"it names {pluralize(len(unknown), 'number')} that no candidate has"
    if malformed:
        yield f"{pluralize(malformed, 'entry', 'entries')} of it cannot be read"
    if double:
        yield f"it decides {pluralize(double, 'candidate')} in two ways"
    if missing := count - len(decided) - double:
        yield f"it leaves out {missing} of {pluralize(count, 'candidate')}"


def _json_objects(body: str) -> Iterator[dict[str, Any]]:
    """Yield the outermost JSON objects of a text, from left to right."""
    decoder, position = json.JSONDecoder(), 0
    for _ in range(_MAX_JSON_STARTS):
        start = body.find("{", position)
        if start < 0:
            return
        try:
            value, position = decoder.raw_decode(body, start)
        except (ValueError, RecursionError):
            position = start + 1
        else:
            yield value
