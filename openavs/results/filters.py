"""Label filters: select the segments of a result that become labels, by the `label_filter` section of a recipe.

By default there are no rules, as in the paper: every box over `filtering.box_threshold` is a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from openavs.config.recipe import LabelFilterConfig
from openavs.stages.lexicon import lexicon, source_of
from openavs.structures.types import ClipResult, FrameResult, Segment

CLIP_RULES = ("min_audible_fraction", "drop_empty")
"""Rules that reject a whole clip; all others reject segments."""


@dataclass(frozen=True)
class FilteredResult:
    """A filtered result.

    Attributes:
        result: the result with the remaining segments.
        reason: the rule that rejects the whole clip; None if it passes.
        rejected: number of rejected segments by rule.
    """

    result: ClipResult
    reason: str | None
    rejected: Mapping[str, int]


def apply_label_filters(result: ClipResult, rules: LabelFilterConfig) -> FilteredResult:
    """Remove the segments that a rule rejects; each is counted for the first rule that it fails."""
    rejected: Counter[str] = Counter()
    frames = []
    for frame in result.frames:
        kept = []
        for segment in frame.segments:
            failed = next(failures(segment, frame, rules), None)
            if failed is None:
                kept.append(segment)
            else:
                rejected[failed] += 1
        frames.append(replace(frame, segments=tuple(kept)))
    filtered = replace(result, frames=tuple(frames))
    return FilteredResult(filtered, _clip_failure(filtered, rules), dict(sorted(rejected.items())))


def failures(segment: Segment, frame: FrameResult, rules: LabelFilterConfig) -> Iterator[str]:
    """Yield the rules that a segment fails; a rule about a score that no model gave is passed."""
    height, width = segment.mask.size
    area = segment.mask.area / (height * width)
    if _below(segment.score, rules.min_score):
        yield "min_score"
    if _below(segment.mask_score, rules.min_mask_score):
        yield "min_mask_score"
    if _below(segment.verifier_score, rules.min_verifier_score):
        yield "min_verifier_score"
    if _below(area, rules.min_area):
        yield "min_area"
    if rules.max_area is not None and area > rules.max_area:
        yield "max_area"
    if rules.min_question_agreement is not None and agreement(segment.phrase, frame) < rules.min_question_agreement:
        yield "min_question_agreement"


def _below(value: float | None, least: float | None) -> bool:
    return value is not None and least is not None and value < least


def agreement(phrase: str, frame: FrameResult) -> float:
    """Return the fraction of a frame's questions that a caption answers with this phrase, in [0, 1].

    A caption answers with the phrase if it contains it, or if the lexicon maps the caption to it. A frame with one
    question gives 0 or 1.
    """
    answers: dict[str, bool] = {}
    source = source_of(phrase)  # the lexicon's entry, if the phrase is its name for detectors
    for caption in frame.captions:
        agrees = any(name in caption.text.lower() or name in lexicon(caption.text) for name in (phrase, source))
        answers[caption.question] = answers.get(caption.question, False) or agrees
    return sum(answers.values()) / len(answers) if answers else 0.0


def _clip_failure(result: ClipResult, rules: LabelFilterConfig) -> str | None:
    audible = sum(not frame.silent for frame in result.frames)
    if rules.min_audible_fraction is not None and audible < rules.min_audible_fraction * len(result.frames):
        return "min_audible_fraction"
    if rules.drop_empty and not any(frame.segments for frame in result.frames):
        return "drop_empty"
    return None
