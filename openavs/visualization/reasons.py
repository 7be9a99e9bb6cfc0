"""Sentences about rejections and verdicts: one table for the report, the page, notebooks and the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from openavs.structures.types import FrameResult, Rejection, Segment, Verdict
from openavs.utils.text import pluralize

REASONS = {
    "not found": "no box for it",
    "below threshold": "its best box scores too low",
    "duplicate": "a better box covers it",
    "too many": "over the limit of boxes",
    "less likely": "another phrase fits sound and picture better",
    "empty mask": "its mask is empty or too small",
    "verifier": "it does not look like its phrase",
    "silent": "another {phrase} {fits}",
    "off-screen": "nothing in the picture fits the sound",
    "not tracked": "no track of it reaches this frame",
}
"""The meaning of each reason of a rejection."""

_CAVEATS = {"unresolved": "kept, the evidence is too weak", "off-screen": REASONS["off-screen"]}
_FITS = {"sync": "moves in time with the sound"}
_KEPT = {"clip": "looks like its phrase", "sync": "sounds", "pe-av": "sounds"}

Caveats = Mapping[str, Mapping[str, int]]
"""Frames by phrase, for `unresolved` and `off-screen`."""


def reason_text(rejection: Rejection) -> str:
    """Return a reason and its sentence; a reason that is not in the table stands alone."""
    fits = _FITS.get(rejection.verifier or "", "fits the sound better")
    sentence = REASONS.get(rejection.reason, "").format(phrase=rejection.phrase, fits=fits)
    return f"{rejection.reason}: {sentence}" if sentence else rejection.reason


def rejection_text(rejection: Rejection) -> str:
    """Return a reason with its sentence and numbers, such as `duplicate: a better box covers it (0.50)`."""
    score = rejection.score
    if rejection.reason == "off-screen" and score is not None:
        return f"{reason_text(rejection)}; best candidate {score:.2f}" + _numbers(None, rejection.margin)
    return reason_text(rejection) + _numbers(score, rejection.margin)


def verdict_text(verdict: Verdict) -> str:
    """Return verifier, decision and numbers, such as `sync: sounds (0.90, margin 0.40)`."""
    text, numbers = _KEPT.get(verdict.verifier, verdict.decision), _numbers(verdict.score, verdict.margin)
    if verdict.decision == "unresolved":
        text = "unresolved: kept, the margin is small"
        if verdict.margin is None:
            text, numbers = "kept without a comparison", ""
    return f"{verdict.verifier or 'verifier'}: {text}{numbers}"


def _numbers(score: float | None, margin: float | None) -> str:
    shown = [f"{score:.2f}"] if score is not None else []
    shown += [f"margin {margin:z.2f}"] if margin is not None else []
    return f" ({', '.join(shown)})" if shown else ""


def is_unresolved(segment: Segment, frame: FrameResult) -> bool:
    """Return whether a verifier could not decide if a segment of a frame makes the sound, and no other verifier did.

    The only candidate of a phrase is not unresolved if it was compared with nothing.
    """
    verdicts = segment.verdicts
    has_rivals = sum(other.phrase == segment.phrase for other in frame.segments) > 1
    is_chosen = any(verdict.decision == "kept" and verdict.margin is not None for verdict in verdicts)
    is_open = any(v.decision == "unresolved" and (has_rivals or v.margin is not None) for v in verdicts)
    return is_open and not is_chosen


def count_caveats(frames: Sequence[FrameResult]) -> Caveats:
    """Return the number of frames in which each phrase is `unresolved`, and in which it is `off-screen`."""
    counts: dict[str, Counter[str]] = {"unresolved": Counter(), "off-screen": Counter()}
    for frame in frames:
        unresolved = [segment.phrase for segment in frame.segments if is_unresolved(segment, frame)]
        off_screen = [rejection.phrase for rejection in frame.rejected if rejection.reason == "off-screen"]
        counts["unresolved"].update(dict.fromkeys(unresolved, 1))
        counts["off-screen"].update(dict.fromkeys(off_screen, 1))
    return counts


def caveat_texts(counts: Caveats, frames: int) -> list[str]:
    """Return texts such as `dog unresolved in 3 of 6 frames: kept, the evidence is too weak`, for that many frames."""
    return [
        f"{phrase} {caveat} in {count} of {pluralize(frames, 'frame')}: {_CAVEATS[caveat]}"
        for caveat, phrases in counts.items()
        for phrase, count in phrases.items()
    ]
