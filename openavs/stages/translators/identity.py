"""No translation: captions are the prompts (the paper's ablation without a language model, "PO")."""

from __future__ import annotations

import re
from collections.abc import Sequence

from openavs.stages.translators.base import Request, Translation
from openavs.stages.translators.prompting import clean_text
from openavs.stages.vocabulary import match_classes
from openavs.structures.types import Caption

_MAX_CHARACTERS = 80  # per phrase: a detector's text encoder reads a few hundred for all phrases together


class IdentityTranslator:
    """Uses each caption as a phrase: lower case, one line, without a closing full stop, at most 80 characters."""

    def translate(self, requests: Sequence[Request]) -> list[Translation]:
        """Return one translation per request; a closed vocabulary keeps only the classes that captions stand for."""
        return [
            Translation(tuple(_frame(captions, request.vocabulary) for captions in request.frames), "none", attempts=0)
            for request in requests
        ]


def _frame(captions: Sequence[Caption], vocabulary: tuple[str, ...] | None) -> tuple[str, ...]:
    phrases = [_phrase(caption.text) for caption in captions]
    if vocabulary is not None:
        phrases = [word for phrase in phrases for word in match_classes(phrase, vocabulary)]
    return tuple(dict.fromkeys(filter(None, phrases)))


def _phrase(text: str) -> str:
    # Full stops separate the phrases of a grounding caption, so a phrase must not contain any.
    words = re.sub(r"[.;|]+", " ", clean_text(text).lower()).split()
    return " ".join(words)[:_MAX_CHARACTERS].strip(" ,!?")
