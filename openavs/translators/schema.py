"""The JSON schema of an answer, for servers and engines that can hold a model to one.

Kept to what OpenAI's strict mode, xgrammar and llama.cpp all take: no string lengths (a pattern bounds them), every
property required, nothing besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openavs.translators.messages import clean_text

_PATTERN = "^[a-z][a-z '-]{0,39}$"
_CLASSES = 250  # more make a grammar slow to compile, and OpenAI then bounds their total length


def answer_schema(frames: int, max_phrases: int, vocabulary: Sequence[str] | None = None) -> dict[str, Any]:
    """`{"frames": [[...], ...]}` with exactly `frames` lists of at most `max_phrases` phrases or classes."""
    phrases = {"type": "array", "maxItems": max_phrases, "items": _phrase(vocabulary)}
    rows = {"type": "array", "minItems": frames, "maxItems": frames, "items": phrases}
    return {
        "type": "object",
        "properties": {"frames": rows},
        "required": ["frames"],
        "additionalProperties": False,
    }


def _phrase(vocabulary: Sequence[str] | None) -> dict[str, Any]:
    if vocabulary is None:
        return {"type": "string", "pattern": _PATTERN}
    classes = list(dict.fromkeys(filter(None, map(clean_text, vocabulary))))
    return {"type": "string", "enum": classes} if 0 < len(classes) <= _CLASSES else {"type": "string"}
