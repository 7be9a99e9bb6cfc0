"""No translation: what was heard is what is looked for (the paper's ablation without an LLM, "PO")."""

from __future__ import annotations

import re
from collections.abc import Sequence

from openavs.stages.translators.base import Request, Translation
from openavs.stages.translators.class_matching import match_classes
from openavs.stages.translators.prompting import clean_text
from openavs.structures.types import Caption

_CHARACTERS = 80  # of one phrase: a detector's text encoder reads a few hundred for all phrases together


class IdentityTranslator:
    """Each caption is one phrase: lower-cased, on one line, without a closing full stop and at most 80 characters."""

    def translate(self, requests: Sequence[Request]) -> list[Translation]:
        """One translation per request, in no attempts; a closed vocabulary keeps only what stands for its classes."""
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
    # Full stops part the phrases of a grounding caption, so none may stand inside of one.
    words = re.sub(r"[.;|]+", " ", clean_text(text).lower()).split()
    return " ".join(words)[:_CHARACTERS].strip(" ,!?")
