"""Translator protocol: captions of a clip -> noun phrases to detect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import getattr_static
from typing import Any, Protocol, runtime_checkable

from openavs.structures.types import Caption


@dataclass(frozen=True)
class FramePicture:
    """A frame of the clip: its index, its time in seconds, and its pixels as a small JPEG file."""

    index: int
    time: float
    jpeg: bytes = field(repr=False)


@dataclass(frozen=True)
class Request:
    """Captions of every frame of one clip (none for a silent frame), in temporal order.

    Attributes:
        frames: the captions of each frame.
        vocabulary: the closed set of phrases that may be answered; None leaves it open.
        expression: a sentence that chooses among what sounds; only for translators with `takes_expression`.
        pictures: of frames that have captions, in temporal order; only for translators with `contact_sheet`.
    """

    frames: tuple[tuple[Caption, ...], ...]
    vocabulary: tuple[str, ...] | None = None
    expression: str | None = None
    pictures: tuple[FramePicture, ...] = ()


@dataclass(frozen=True)
class Translation:
    """Phrases to detect at every frame, in the order of the request.

    Attributes:
        frames: the phrases of each frame.
        origin: the source of the phrases: `llm`, `lexicon` or `none`.
        note: a sentence about anything that went wrong (a malformed answer, a fallback), else None.
        attempts: number of model requests.
        transient: a temporary fault (a server outage) had an influence, so a repetition may have another result.
        origins: the origin of each frame if they differ; `origin` is then `llm`.
    """

    frames: tuple[tuple[str, ...], ...]
    origin: str
    note: str | None = None
    attempts: int = 1
    transient: bool = False
    origins: tuple[str, ...] | None = None

    def origin_of(self, frame: int) -> str:
        """Return the origin of one frame's phrases."""
        return self.origins[frame] if self.origins else self.origin


@runtime_checkable
class Translator(Protocol):
    """Names the visible objects that make the sounds of a clip.

    A translator with a true attribute `takes_expression` reads `Request.expression`. For others an expression is the
    only prompt of a clip, and they are not called. One with `contact_sheet = True` gets requests with pictures.
    """

    def translate(self, requests: Sequence[Request]) -> list[Translation]:
        """Return one translation per request. Identical requests may be answered once."""
        ...


def wants_pictures(translator: Any) -> bool:
    """Return whether requests to a translator hold pictures: whether its attribute `contact_sheet` is True.

    The attribute is read without loading the model of a lazy backend.
    """
    return getattr_static(translator, "contact_sheet", False) is True
