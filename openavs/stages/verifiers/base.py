"""Protocols of verifiers: does a segment look like its phrase, and does it move like the sound?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from openavs.structures.types import ClipEvidence, ImageArray, Segment, TrackedFrame, Verdict


@runtime_checkable
class Verifier(Protocol):
    """Verifies each segment by itself. A verdict depends on the image, the segment and the phrases of the image."""

    def verify(
        self, images: Sequence[ImageArray], segments: Sequence[Sequence[Segment]], phrases: Sequence[Sequence[str]]
    ) -> list[list[Verdict]]:
        """Return one list of verdicts per image, one per segment. `phrases` are all that sound at each image."""
        ...


@runtime_checkable
class TemporalVerifier(Protocol):
    """Verifies the segments of a clip together: the candidates of a phrase are compared over time."""

    def verify_clip(self, frames: Iterable[TrackedFrame], evidence: ClipEvidence) -> Iterator[TrackedFrame]:
        """Yield the same frames in the same order, with a verdict on every segment.

        A rejected segment becomes a `Rejection` of its frame. `frames` are consumed lazily, at most a bounded number
        ahead of the output. Segments of one track are the same object; without a tracker, `track` is None.
        """
        ...
