"""The lexicon as a translator: no model, no wait; also what the others fall back on."""

from __future__ import annotations

from collections.abc import Sequence

from openavs.translators.base import Request, Translation
from openavs.translators.closing import in_text, to_vocabulary
from openavs.translators.messages import MAX_PHRASES
from openavs.translators.words import audioset_labels, lexicon
from openavs.types import Caption

__all__ = ["LexiconTranslator", "audioset_labels", "lexicon"]


class LexiconTranslator:
    """Looks every caption up in the sound-event lexicon; a frame keeps its `max_phrases` surest things."""

    def __init__(self, *, max_phrases: int = MAX_PHRASES) -> None:
        self.max_phrases = max_phrases

    def translate(self, requests: Sequence[Request]) -> list[Translation]:
        """One translation per request, in no attempts at all: nobody is asked."""
        return [
            Translation(
                tuple(self._frame(captions, request.vocabulary) for captions in request.frames), "lexicon", attempts=0
            )
            for request in requests
        ]

    def _frame(self, captions: Sequence[Caption], vocabulary: tuple[str, ...] | None) -> tuple[str, ...]:
        surest = sorted(captions, key=lambda caption: 0.0 if caption.score is None else -caption.score)
        phrases = [phrase for caption in surest for phrase in _phrases(caption.text, vocabulary)]
        return tuple(dict.fromkeys(phrases))[: self.max_phrases]


def _phrases(text: str, vocabulary: tuple[str, ...] | None) -> tuple[str, ...]:
    things = lexicon(text)
    if vocabulary is None:
        return things
    closed = [phrase for thing in things for phrase in to_vocabulary(thing, vocabulary)]
    # A class of the user's own that the lexicon has never heard of is still found by its name.
    return tuple(dict.fromkeys([*closed, *(() if closed else in_text(text, vocabulary))]))
