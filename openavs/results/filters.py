"""Filters of finished results: the `label_filter` section of a recipe, and another threshold of boxes.

By default there are no rules for labels, as in the paper: every box over `filtering.box_threshold` is a label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from openavs.config.recipe import LabelFilterConfig
from openavs.errors import InputError
from openavs.stages.lexicon import lexicon, source_of
from openavs.structures.types import Clip, ClipResult, FrameResult, Rejection, Segment

if TYPE_CHECKING:
    from openavs.pipeline.pipeline import Pipeline

BELOW = "below threshold"
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
    """Yield the rules that a segment fails: none of a person's; a rule about a score that no model gave is passed."""
    if segment.author == "person":
        return
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


def apply_threshold(
    result: ClipResult, threshold: float, pipe: Pipeline | None = None, reopen: Callable[[], Clip] | None = None
) -> ClipResult:
    """Return a result with another threshold of boxes.

    Segments below it become rejections `below threshold`. Rejections of that reason that reach it become segments if
    there is a pipeline, whose segmenter makes their masks; otherwise they stay.

    Args:
        result: the result.
        threshold: least score of a box.
        pipe: the pipeline.
        reopen: opens the clip; needed with `pipe`.

    Raises:
        InputError: a threshold outside [0, 1], or a segmenter that takes no boxes.
    """
    if not 0 <= threshold <= 1:
        raise InputError(f"a threshold is from 0 to 1, not {threshold}")
    made = {} if pipe is None or reopen is None else _segment_candidates(result, threshold, pipe, reopen)
    frames = []
    for frame in result.frames:
        new = made.get(frame.index, [])
        low = [Rejection(s.phrase, BELOW, s.score, s.box) for s in frame.segments if s.score < threshold]
        kept = sorted([*(s for s in frame.segments if s.score >= threshold), *new], key=lambda s: -s.score)
        rejected = [r for r in frame.rejected if r.box is None or r.box not in {s.box for s in new}]
        frames.append(replace(frame, segments=tuple(kept), rejected=(*rejected, *low)))
    filtering = {**result.recipe.get("filtering", {}), "box_threshold": threshold}
    return replace(result, frames=tuple(frames), recipe={**result.recipe, "filtering": filtering})


def _segment_candidates(
    result: ClipResult, threshold: float, pipe: Pipeline, reopen: Callable[[], Clip]
) -> dict[int, list[Segment]]:
    """Return, by frame, segments of the rejected boxes that reach a threshold."""
    if not hasattr(pipe.segmenter, "segment"):
        raise InputError("this pipeline has no segmenter of boxes, so it makes no masks for a lower threshold")
    near = {
        frame.index: [
            (r.phrase, r.box, r.score)
            for r in frame.rejected
            if r.reason == BELOW and r.box is not None and r.score is not None and r.score >= threshold
        ]
        for frame in result.frames
    }
    wanted = frozenset(index for index, own in near.items() if own)
    made: dict[int, list[Segment]] = {}
    for shown in reopen().frames(wanted) if wanted else ():
        boxes = near[shown.index]
        (masks,) = pipe.segmenter.segment([shown.image], [[box for _, box, _ in boxes]])
        made[shown.index] = [
            Segment(mask.rle, box, phrase, score, mask.score, *pipe.label(phrase))
            for (phrase, box, score), mask in zip(boxes, masks, strict=True)
            if mask.rle.area
        ]
    return made
