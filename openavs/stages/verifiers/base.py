"""The verifier's protocol: does a segment look like what was heard?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from openavs.structures.types import ImageArray, Segment


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one segment: whether it stays, how much it looks like its phrase (in [0, 1]), and what it
    looks like most: a phrase, or None for nothing in particular."""

    kept: bool
    score: float
    seen: str | None


@runtime_checkable
class Verifier(Protocol):
    """Looks at each segment again, on its own. A verdict hangs on the image, the segment and what else was asked."""

    def verify(
        self, images: Sequence[ImageArray], segments: Sequence[Sequence[Segment]], asked: Sequence[Sequence[str]]
    ) -> list[list[Verdict]]:
        """One list of verdicts per image, one per segment. `asked` holds all phrases that sound at each image."""
        ...
