"""Protocol of reasoners: the last stage, which accepts or rejects the candidates of a whole clip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from openavs.structures.types import ClipEvidence, TrackedFrame


@runtime_checkable
class Reasoner(Protocol):
    """Decides which objects of a clip make its sounds, once they are found: candidates first, reason second."""

    def reason(self, frames: Iterable[TrackedFrame], evidence: ClipEvidence) -> Iterator[TrackedFrame]:
        """Yield the same frames in the same order, with a verdict on every segment.

        Segments of one track are one candidate, and every segment has a track. A rejected segment becomes a
        `Rejection` of its frame. The masks of a clip may be held in memory, its pixels may not.
        `evidence.record` takes the question and the answer.
        """
        ...
