"""Sentences about rejections, verdicts and missing results: the same in the report, the page and the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from openavs.structures.types import Caption, FrameResult, Rejection, Segment, Verdict
from openavs.utils.text import pluralize

REASONS = {
    "not found": "no box for it",
    "unknown word": "the detector does not know this word",
    "below threshold": "its best box scores too low",
    "duplicate": "a better box covers it",
    "too many": "over the limit of boxes",
    "less likely": "another phrase fits sound and picture better",
    "empty mask": "its mask is empty or too small",
    "verifier": "it does not look like its phrase",
    "silent": "another {phrase} {fits}",
    "off-screen": "nothing in the picture fits the sound",
    "reasoner": "by all evidence of the clip, it makes no sound",
    "not tracked": "no track of it reaches this frame",
    "person": "a person removed it",
}
"""The meaning of each reason of a rejection."""

_CAVEATS = {"unresolved": "kept, the evidence is too weak", "off-screen": REASONS["off-screen"]}
_FITS = {"sync": "moves in time with the sound"}
_KEPT = {"clip": "looks like its phrase", "sync": "sounds", "pe-av": "sounds", "reasoner": "sounds"}

_REASONER = "reasoner"

ORIGINS = {
    "llm": "the language model",
    "lexicon": "the lexicon",
    "none": "the captions",
    "expression": "the expression",
    "recipe": "the recipe",
}
"""The origins of prompts (`Prompt.origin`) as text."""

_MERGED = ("below threshold", "duplicate", "too many")  # several boxes of a phrase are shown as their number

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
    if verdict.verifier == _REASONER:  # its answers have no numbers
        return f"{_REASONER}: {text if verdict.decision == 'kept' else 'unresolved: kept without a decision'}"
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

    The only candidate of a phrase is not unresolved if it was compared with nothing. A reasoner's decision is the last.
    """
    verdicts = segment.verdicts
    has_rivals = sum(other.phrase == segment.phrase for other in frame.segments) > 1
    reasoned = [verdict for verdict in verdicts if verdict.verifier == _REASONER]
    if reasoned and reasoned[-1].decision == "kept":  # it knows the other verdicts
        return False
    is_chosen = any(verdict.decision == "kept" and verdict.margin is not None for verdict in verdicts)
    is_open = any(
        v.decision == "unresolved" and (has_rivals or v.margin is not None or v.verifier == _REASONER) for v in verdicts
    )
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


# ------------------------------------------------------------------------------------------- from captions to segments


def merge_rejections(rejected: Sequence[Rejection]) -> list[tuple[Rejection, int]]:
    """Return the rejections of a frame, each with the number of boxes that it stands for.

    Boxes of one phrase below the threshold, covered or over the limit are merged into the best one; of the `off-screen`
    candidates of a phrase only the first, best one is returned.
    """
    merged: dict[object, list[Rejection]] = {}
    for number, rejection in enumerate(rejected):
        one_of_several = rejection.reason in (*_MERGED, "off-screen")
        key = (rejection.phrase, rejection.reason) if one_of_several else number
        merged.setdefault(key, []).append(rejection)
    return [
        (own[0], 1) if own[0].reason == "off-screen" else (max(own, key=lambda r: r.score or 0.0), len(own))
        for own in merged.values()
    ]


def caption_text(caption: Caption) -> str:
    """Return a caption with its score, such as `dog barking 0.81`."""
    return caption.text if caption.score is None else f"{caption.text} {caption.score:.2f}"


def chain_texts(frames: Sequence[FrameResult]) -> list[str]:
    """Return texts such as `person <- Shuffle 0.15`: the found phrases, best first, with the captions behind them."""
    scores: dict[str, float] = {}
    for segment in (segment for frame in frames for segment in frame.segments):
        scores[segment.phrase] = max(scores.get(segment.phrase, 0.0), segment.score)
    texts = []
    for phrase in sorted(scores, key=lambda phrase: -scores[phrase]):
        prompts = (prompt for frame in frames for prompt in frame.prompts if prompt.phrase == phrase)
        captions = best_captions(caption for prompt in prompts for caption in prompt.captions)
        if captions:
            texts.append(f"{phrase} <- {', '.join(map(caption_text, captions[:2]))}")
    return texts


def unprompted_texts(frames: Sequence[FrameResult]) -> list[str]:
    """Return `no prompt from the language model for horse trotting 0.30`, with all captions without a prompt."""
    prompts = [prompt for frame in frames for prompt in frame.prompts if prompt.origin != "recipe"]
    used = {caption.text for prompt in prompts for caption in prompt.captions}
    origins = {ORIGINS.get(prompt.origin, prompt.origin) for prompt in prompts}
    if any(not prompt.captions for prompt in prompts):
        return []  # a translator that does not record its captions
    source = f" from {origins.pop()}" if len(origins) == 1 else ""
    left = best_captions(caption for frame in frames for caption in frame.captions if caption.text not in used)
    return [f"no prompt{source} for {', '.join(map(caption_text, left))}"] if left else []


def best_captions(captions: Iterable[Caption]) -> list[Caption]:
    """Return the best caption of each text, best first."""
    best: dict[str, Caption] = {}
    for caption in captions:
        other = best.get(caption.text)
        if other is None or _rank(caption) > _rank(other):
            best[caption.text] = caption
    return sorted(best.values(), key=_rank, reverse=True)


def _rank(caption: Caption) -> float:
    return 1.0 if caption.score is None else caption.score


def remedy_text(frames: Sequence[FrameResult]) -> str | None:
    """Return why nothing was found in a clip and what can be done, in one sentence; None if something was found.

    The first stage that ended all phrases is named: sound, captions, prompts, then the reason of the rejections.
    """
    if not frames or any(frame.segments for frame in frames):
        return None
    audible = [frame for frame in frames if not frame.silent]
    if not audible:
        return "the audio is silent; give another sound (--audio FILE), or lower audio.silence_dbfs"
    captions = best_captions(caption for frame in audible for caption in frame.captions)
    if not captions:
        weak = best_captions(caption for frame in audible for caption in frame.weak)
        if weak and weak[0].score is not None:
            near = f"captioner.threshold={_below(weak[0].score)} accepts it"
            return f"no sound was recognized; the best caption is {caption_text(weak[0])}, below the threshold; {near}"
        return "no sound was recognized; lower captioner.threshold, or use another captioner"
    heard = ", ".join(map(caption_text, captions[:2]))
    prompts = dict.fromkeys(prompt.phrase for frame in audible for prompt in frame.prompts)
    if not prompts:
        return f"no visible thing was named for {heard}; use another translator, such as translator='{{use: lexicon}}'"
    remedy = _rejection_remedy(audible)
    return remedy if _listed(prompts) in remedy else f"prompts {_listed(prompts)}: {remedy}"


def _rejection_remedy(frames: Sequence[FrameResult]) -> str:
    """Return why the prompts of some frames led to no segment, and the fix."""
    by_reason: dict[str, list[Rejection]] = {}
    for frame in frames:
        for rejection in frame.rejected:
            by_reason.setdefault(rejection.reason, []).append(rejection)
    texts = []
    if unknown := by_reason.get("unknown word"):
        words = _listed(dict.fromkeys(rejection.phrase for rejection in unknown))
        texts.append(f"the detector does not know {words}: use one of open vocabulary, such as that of openavs-cpu")
    if near := [rejection for rejection in by_reason.get("below threshold", ()) if rejection.score]:
        best = max(near, key=lambda rejection: rejection.score or 0.0)
        keep = f"filtering.box_threshold={_below(best.score or 0.0)} keeps it"
        texts.append(f"the best box is {best.phrase} {best.score:.2f}, below the threshold: {keep}")
    for reason in ("verifier", "off-screen", "silent", _REASONER):
        stage = _REASONER if reason == _REASONER else "verifier"
        for rejection in by_reason.get(reason, ())[:1]:
            texts.append(f"{rejection.phrase} was rejected ({reason_text(rejection)}): {stage}=null keeps it")
    if not texts and (missing := by_reason.get("not found")):
        words = _listed(dict.fromkeys(rejection.phrase for rejection in missing))
        texts.append(f"no box for {words}: it is not in view at these frames, or too small; sample.fps=4 sees more")
    return "; ".join(texts[:2]) or "all boxes were rejected; the frames give the reasons"


def _below(score: float) -> str:
    """Return a threshold just below a score."""
    return f"{max(math.floor(score * 100) / 100, 0.01):g}"


def _listed(words: Iterable[str], most: int = 4) -> str:
    found = list(words)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more
