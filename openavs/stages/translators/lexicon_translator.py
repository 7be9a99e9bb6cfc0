"""Translators without a model: the sound-event lexicon, also the fallback of the others; and no translation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from openavs.stages.lexicon import category, is_collective, is_genre, lexicon, specific
from openavs.stages.prompting import MAX_PHRASES, clean_text
from openavs.stages.translators.base import Request, Translation
from openavs.stages.vocabulary import classes_in_text, match_classes
from openavs.structures.types import Caption


class LexiconTranslator:
    """Looks up every caption in the sound-event lexicon.

    A category ("animal") or a collective label ("Livestock") adds nothing to a frame that names one of its members.

    Args:
        max_phrases: maximum number of phrases per frame, those of the captions with the highest scores first.
        genre_instruments: True to map a genre or mood of music ("Jazz") to a musical instrument if the frame names
            nothing else; by default it maps to nothing, since such music mostly has no source in the picture.
    """

    def __init__(self, *, max_phrases: int = MAX_PHRASES, genre_instruments: bool = False) -> None:
        self.max_phrases, self.genre_instruments = max_phrases, genre_instruments

    def translate(self, requests: Sequence[Request]) -> list[Translation]:
        """Return one translation per request; `attempts` is 0, since no model is involved."""
        return [
            Translation(
                tuple(self._frame(captions, request.vocabulary) for captions in request.frames), "lexicon", attempts=0
            )
            for request in requests
        ]

    def _frame(self, captions: Sequence[Caption], vocabulary: tuple[str, ...] | None) -> tuple[str, ...]:
        best_first = sorted(captions, key=lambda caption: 0.0 if caption.score is None else -caption.score)
        texts = _specific_texts([caption.text for caption in best_first])
        things = specific(list(dict.fromkeys(thing for text in texts for thing in lexicon(text))))
        if not things and self.genre_instruments and any(is_genre(caption.text) for caption in best_first):
            texts = ["Musical instrument"]
            things = lexicon(texts[0])
        phrases = [phrase for text in texts for phrase in _phrases(text, things, vocabulary)]
        return tuple(dict.fromkeys(phrases))[: self.max_phrases]


def _specific_texts(texts: Sequence[str]) -> list[str]:
    """The captions without collective labels whose category has a member that another caption names."""
    named = {thing for text in texts if not is_collective(text) for thing in lexicon(text)}
    return [
        text for text in texts if not (is_collective(text) and any(category(thing) & named for thing in lexicon(text)))
    ]


def _phrases(text: str, kept: Sequence[str], vocabulary: tuple[str, ...] | None) -> tuple[str, ...]:
    things = tuple(thing for thing in lexicon(text) if thing in kept)
    if vocabulary is None:
        return things
    if lexicon(text) and not things:
        return ()
    classes = [phrase for thing in things for phrase in match_classes(thing, vocabulary)]
    # A class that the lexicon does not contain is still matched by its name.
    return tuple(dict.fromkeys([*classes, *(() if classes else classes_in_text(text, vocabulary))]))


_MAX_CHARACTERS = 80  # per phrase: a detector's text encoder reads a few hundred for all phrases together


class IdentityTranslator:
    """Uses each caption as a phrase: lower case, one line, without a closing full stop, at most 80 characters.

    It is the paper's ablation without a language model, "PO".
    """

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
