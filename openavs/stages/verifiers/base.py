"""Protocol of verifiers: does a segment look like its phrase?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from openavs.structures.types import ImageArray, Segment


@dataclass(frozen=True)
class Verdict:
    """A verifier's decision about one segment.

    Attributes:
        kept: whether the segment is kept.
        score: how much it looks like its phrase, in [0, 1].
        best_match: the phrase that it looks like most; None for none of them.
    """

    kept: bool
    score: float
    best_match: str | None


@runtime_checkable
class Verifier(Protocol):
    """Verifies each segment by itself. A verdict depends on the image, the segment and the phrases of the image."""

    def verify(
        self, images: Sequence[ImageArray], segments: Sequence[Sequence[Segment]], phrases: Sequence[Sequence[str]]
    ) -> list[list[Verdict]]:
        """Return one list of verdicts per image, one per segment. `phrases` are all that sound at each image."""
        ...
