"""Which of a result's segments become labels: the `filter` section of a recipe, and what each rule dropped.

The paper's default is no rule here: a box over `filtering.box_threshold` is a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from openavs.config.recipe import LabelFilterConfig
from openavs.stages.lexicon import lexicon, source_of
from openavs.structures.types import ClipResult, FrameResult, Segment

CLIP_RULES = ("min_audible_fraction", "drop_empty")
"""The rules that drop a clip as a whole; all others drop segments."""


@dataclass(frozen=True)
class FilteredResult:
    """What is left. `reason` is the rule that the clip fails as a whole (None: it passes); `dropped` counts, by rule,
    the segments that were left out."""

    result: ClipResult
    reason: str | None
    rejected: Mapping[str, int]


def apply_label_filters(result: ClipResult, rules: LabelFilterConfig) -> FilteredResult:
    """Leaves out the segments that a rule rejects; one is counted for the first rule that it fails."""
    dropped: Counter[str] = Counter()
    frames = []
    for frame in result.frames:
        kept = []
        for segment in frame.segments:
            failed = next(failures(segment, frame, rules), None)
            if failed is None:
                kept.append(segment)
            else:
                dropped[failed] += 1
        frames.append(replace(frame, segments=tuple(kept)))
    left = replace(result, frames=tuple(frames))
    return FilteredResult(left, _clip_failure(left, rules), dict(sorted(dropped.items())))


def failures(segment: Segment, frame: FrameResult, rules: LabelFilterConfig) -> Iterator[str]:
    """The rules that a segment fails. Where a model gave no score, the rule about that score is passed."""
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
    """The share of a frame's questions that a caption answers with this phrase, in its words or by the lexicon.

    1 where all questions that were asked lead to it. A frame with one question can only agree (1) or not (0).
    """
    answers: dict[str, bool] = {}
    thing = source_of(phrase)
    for caption in frame.captions:
        speaks = any(name in caption.text.lower() or name in lexicon(caption.text) for name in (phrase, thing))
        answers[caption.question] = answers.get(caption.question, False) or speaks
    return sum(answers.values()) / len(answers) if answers else 0.0


def _clip_failure(result: ClipResult, rules: LabelFilterConfig) -> str | None:
    sounding = sum(not frame.silent for frame in result.frames)
    if rules.min_audible_fraction is not None and sounding < rules.min_audible_fraction * len(result.frames):
        return "min_audible_fraction"
    if rules.drop_empty and not any(frame.segments for frame in result.frames):
        return "drop_empty"
    return None
