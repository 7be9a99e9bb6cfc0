"""The phrase-to-token map: which tokens of a Grounding DINO caption belong to which phrase.

Grounding DINO reads all phrases as one caption, `dog . red car .`, and scores every token of it. Decoding tokens back
to words merges and cuts labels; here the caption is built from token ids, so every phrase's span is known.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

CLS, SEP, DOT, QUESTION = 101, 102, 1012, 1029  # BERT's ids, hard-coded in the model as the borders of phrases
_NEVER_IN_A_PHRASE = frozenset({0, CLS, SEP, DOT, QUESTION})  # 0 is the padding

Encode = Callable[[list[str]], list[list[int]]]
"""Turns texts into token ids, without special tokens."""


@dataclass(frozen=True)
class CaptionTokens:
    """One caption as token ids `[CLS] p1 . p2 . [SEP]`; `spans[i]` is the half-open token range of `phrases[i]`."""

    ids: tuple[int, ...]
    phrases: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


def clean_phrase(phrase: str, borders: str = ".?") -> str:
    """One lower-case line without control characters, lone surrogates and the characters that would end a phrase."""
    kept = []
    for char in phrase:
        category = unicodedata.category(char)
        if char in borders or category == "Cc":
            kept.append(" ")
        elif category not in ("Cf", "Cs"):
            kept.append(char)
    return " ".join("".join(kept).lower().split())


def map_phrases(phrases: Sequence[str], encode: Encode, limit: int, most: int | None = None) -> list[CaptionTokens]:
    """Plans the captions that ask for all phrases, none longer than `limit` tokens.

    Phrases keep their order and their spelling. Those that read the same to the model (`Dog`, `dog`) are asked once,
    under the first spelling; those of which nothing is left (`...`) are not asked. A phrase that is too long for a
    caption of its own is cut. A caption holds at most `most` phrases; None sets no bound.
    """
    captions: list[CaptionTokens] = []
    batch: list[tuple[str, tuple[int, ...]]] = []
    length = 2  # [CLS] and [SEP]
    for tokens, phrase in _distinct(phrases, encode, longest=limit - 3).items():
        if batch and (len(batch) == most or length + len(tokens) + 1 > limit):
            captions.append(_join(batch))
            batch, length = [], 2
        batch.append((phrase, tokens))
        length += len(tokens) + 1
    if batch:
        captions.append(_join(batch))
    return captions


def _distinct(phrases: Sequence[str], encode: Encode, longest: int) -> dict[tuple[int, ...], str]:
    """Token ids -> the phrase as it was first given."""
    cleaned = [clean_phrase(phrase) for phrase in phrases]
    found: dict[tuple[int, ...], str] = {}
    for phrase, ids in zip(phrases, encode(cleaned) if cleaned else [], strict=True):
        tokens = tuple(i for i in ids if i not in _NEVER_IN_A_PHRASE)
        if len(tokens) > longest:
            logger.warning("a phrase of %d tokens was cut to the %d that fit: %.60r", len(tokens), longest, phrase)
            tokens = tokens[:longest]
        if tokens:
            found.setdefault(tokens, phrase)
    return found


def _join(batch: Sequence[tuple[str, tuple[int, ...]]]) -> CaptionTokens:
    ids, spans = [CLS], []
    for _, tokens in batch:
        spans.append((len(ids), len(ids) + len(tokens)))
        ids += [*tokens, DOT]
    return CaptionTokens((*ids, SEP), tuple(phrase for phrase, _ in batch), tuple(spans))
