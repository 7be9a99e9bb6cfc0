"""Captions of Grounding DINO as token ids, with the token span of each phrase.

Grounding DINO reads all phrases as one caption, `dog . red car .`, and scores every token of it. Decoding tokens back
to words merges and truncates labels; here the caption is built from token ids, so every phrase's span is known.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

logger = logging.getLogger(__name__)

CLS, SEP, DOT, QUESTION = 101, 102, 1012, 1029  # BERT's ids, hard-coded in the model as separators of phrases
_SEPARATORS = frozenset({0, CLS, SEP, DOT, QUESTION})  # 0 is padding

Encode = Callable[[list[str]], list[list[int]]]
"""Converts texts to token ids, without special tokens."""


@dataclass(frozen=True)
class CaptionTokens:
    """One caption as token ids `[CLS] p1 . p2 . [SEP]`; `spans[i]` is the half-open token range of `phrases[i]`."""

    ids: tuple[int, ...]
    phrases: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


def clean_phrase(phrase: str, separators: str = ".?") -> str:
    """Convert to one lower-case line, without control characters, lone surrogates and separators of phrases."""
    kept = []
    for char in phrase:
        category = unicodedata.category(char)
        if char in separators or category == "Cc":
            kept.append(" ")
        elif category not in ("Cf", "Cs"):
            kept.append(char)
    return " ".join("".join(kept).lower().split())


def plan_captions(
    phrases: Sequence[str], encode: Encode, max_tokens: int, max_phrases: int | None = None
) -> list[CaptionTokens]:
    """Distribute phrases over as few captions as their length allows.

    Phrases keep their order and their spelling. Those with equal tokens (`Dog`, `dog`) are included once, under the
    first spelling; those without tokens (`...`) are dropped. A phrase that is too long for a caption is truncated.

    Args:
        phrases: noun phrases in any script.
        encode: the tokenizer.
        max_tokens: maximum length of a caption.
        max_phrases: maximum number of phrases in a caption; None for no limit.
    """
    captions: list[CaptionTokens] = []
    batch: list[tuple[str, tuple[int, ...]]] = []
    length = 2  # [CLS] and [SEP]
    for tokens, phrase in _distinct(phrases, encode, max_tokens=max_tokens - 3).items():
        if batch and (len(batch) == max_phrases or length + len(tokens) + 1 > max_tokens):
            captions.append(_join(batch))
            batch, length = [], 2
        batch.append((phrase, tokens))
        length += len(tokens) + 1
    if batch:
        captions.append(_join(batch))
    return captions


def _distinct(phrases: Sequence[str], encode: Encode, max_tokens: int) -> dict[tuple[int, ...], str]:
    """Map the token ids of each distinct phrase to its first spelling."""
    cleaned = [clean_phrase(phrase) for phrase in phrases]
    found: dict[tuple[int, ...], str] = {}
    for phrase, ids in zip(phrases, encode(cleaned) if cleaned else [], strict=True):
        tokens = tuple(i for i in ids if i not in _SEPARATORS)
        if len(tokens) > max_tokens:
            logger.warning("a phrase of %d tokens was truncated to %d: %.60r", len(tokens), max_tokens, phrase)
            tokens = tokens[:max_tokens]
        if tokens:
            found.setdefault(tokens, phrase)
    return found


def _join(batch: Sequence[tuple[str, tuple[int, ...]]]) -> CaptionTokens:
    ids, spans = [CLS], []
    for _, tokens in batch:
        spans.append((len(ids), len(ids) + len(tokens)))
        ids += [*tokens, DOT]
    return CaptionTokens((*ids, SEP), tuple(phrase for phrase, _ in batch), tuple(spans))
