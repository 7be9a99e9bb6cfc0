"""The translator's protocol: what was heard -> noun phrases to look for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from openavs.structures.types import Caption


@dataclass(frozen=True)
class Request:
    """All that one clip is heard to say: the captions of every frame (none for a silent one), in order of time.

    `vocabulary` closes the set of phrases that may be answered; None leaves it open.
    """

    frames: tuple[tuple[Caption, ...], ...]
    vocabulary: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Translation:
    """The phrases to look for at every frame, in the order of the request.

    `origin` says who answered (`llm`, `lexicon`, `none`); `note` is a sentence when something went wrong on the way
    (a malformed answer, a fallback), else None; `attempts` counts the requests that were made. `passing` says that a
    fault of the moment had a part in it (a server that was down): asked again, it may well be another. `origins` has
    who answered for each frame if not the same for all; `origin` is then `llm`.
    """

    frames: tuple[tuple[str, ...], ...]
    origin: str
    note: str | None = None
    attempts: int = 1
    passing: bool = False
    origins: tuple[str, ...] | None = None

    def origin_of(self, frame: int) -> str:
        """Who answered for one frame."""
        return self.origins[frame] if self.origins else self.origin


@runtime_checkable
class Translator(Protocol):
    """Names the things that make the sounds that were heard."""

    def translate(self, requests: Sequence[Request]) -> list[Translation]:
        """One translation per request. Identical requests may be answered once."""
        ...
