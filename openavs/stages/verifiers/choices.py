"""Decisions of verifiers of whole clips, and their application to a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from openavs.structures.types import Decision, Rejection, Segment, TrackedFrame, Verdict


@dataclass(frozen=True)
class Choice:
    """The decision about one candidate of a phrase.

    Attributes:
        decision: `kept`, `rejected` or `unresolved`.
        score: how well it fits the sound, in [0, 1].
        margin: see `Verdict`.
        reason: reason of the rejection: `silent` or `off-screen`; None unless rejected.
    """

    decision: Decision
    score: float
    margin: float | None = None
    reason: str | None = None


def apply_choices(tracked: TrackedFrame, choices: Sequence[Choice], verifier: str) -> TrackedFrame:
    """Return a frame with a verdict on every segment; rejected segments become rejections, the best one first.

    Args:
        tracked: the frame.
        choices: one for each segment.
        verifier: name of the verifier.
    """
    segments: list[Segment] = []
    rejected: list[Rejection] = []
    for segment, choice in zip(tracked.segments, choices, strict=True):
        if choice.reason is not None:
            rejected.append(
                Rejection(segment.phrase, choice.reason, choice.score, segment.box, choice.margin, verifier)
            )
            continue
        verdict = Verdict(choice.decision, choice.score, choice.margin, None, verifier)
        segments.append(replace(segment, verdicts=(*segment.verdicts, verdict)))
    rejected.sort(key=lambda rejection: -(rejection.score or 0.0))
    return replace(tracked, segments=tuple(segments), rejected=(*tracked.rejected, *rejected))
