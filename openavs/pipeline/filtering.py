"""Filtering of detections: threshold, non-maximum suppression, limits, and likelihood of audio and picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from openavs.config.recipe import PipelineConfig
from openavs.structures.masks import iou
from openavs.structures.types import Detection, Prompt, Rejection


def filter_detections(
    candidates: Sequence[Detection],
    prompts: Sequence[Prompt],
    rules: PipelineConfig,
    knows: Callable[[str], bool] = lambda phrase: True,
) -> tuple[list[Detection], list[Rejection]]:
    """Return the boxes of a frame that are kept, best first, and the rejections.

    Boxes below the threshold (a phrase's further boxes may have a higher one), boxes that a better box covers and boxes
    over the limits are rejected. A phrase without any box is rejected as `not found`, as `unknown word` if the detector
    does not know it, or as `below threshold` if its best box was close. Candidates of phrases that are not among the
    prompts are ignored.
    """
    unlikely, rejected = _less_likely(candidates, prompts, rules)
    kept: list[Detection] = []
    phrases = {prompt.phrase for prompt in prompts} - unlikely
    near: dict[str, Detection] = {}  # the best box below the threshold, by phrase
    for box in sorted((c for c in candidates if c.phrase in phrases), key=lambda c: -c.score):
        if box.score < _threshold(box.phrase, kept, rules):
            near.setdefault(box.phrase, box)
        elif covering := _covering(box, kept, rules.nms_iou):
            if box.phrase not in {other.phrase for other in covering}:  # else the same object was found twice
                rejected.append(Rejection(box.phrase, "duplicate", box.score, box.box))
        elif len(kept) == rules.max_boxes or _is_full(box.phrase, kept, rules.max_per_phrase):
            rejected.append(Rejection(box.phrase, "too many", box.score, box.box))
        else:
            kept.append(box)
    answered = {box.phrase for box in kept} | {drop.phrase for drop in rejected}
    for phrase in (prompt.phrase for prompt in prompts if prompt.phrase not in answered):
        best = near.get(phrase)
        if best is None:
            rejected.append(Rejection(phrase, "not found" if knows(phrase) else "unknown word"))
        else:
            rejected.append(Rejection(phrase, "below threshold", best.score, best.box))
    return kept, rejected


def _less_likely(
    candidates: Sequence[Detection], prompts: Sequence[Prompt], rules: PipelineConfig
) -> tuple[set[str], list[Rejection]]:
    """Return the phrases that audio and picture together make less likely than the frame's best one.

    A phrase's likelihood is the score of its best caption times the score of its best box above the threshold (a
    product of experts); a caption without a score counts 1. Each phrase comes with its rejection.
    """
    if rules.min_audio_visual_ratio is None:
        return set(), []
    best: dict[str, Detection] = {}
    for box in candidates:
        if box.score >= rules.box_threshold and (box.phrase not in best or box.score > best[box.phrase].score):
            best[box.phrase] = box
    likelihood = {p.phrase: p.audio_score * best[p.phrase].score for p in prompts if p.phrase in best}
    least = rules.min_audio_visual_ratio * max(likelihood.values(), default=0.0)
    unlikely = [phrase for phrase, value in likelihood.items() if value < least]
    return set(unlikely), [Rejection(p, "less likely", best[p].score, best[p].box) for p in unlikely]


def _covering(box: Detection, kept: Sequence[Detection], limit: float | None) -> list[Detection]:
    """Return the kept, better boxes whose IoU with a box is over the limit."""
    return [] if limit is None else [other for other in kept if iou(box.box, other.box) > limit]


def _threshold(phrase: str, kept: Sequence[Detection], rules: PipelineConfig) -> float:
    """Return the least score of the next box of a phrase."""
    if rules.repeat_threshold is None or all(other.phrase != phrase for other in kept):
        return rules.box_threshold
    return max(rules.box_threshold, rules.repeat_threshold)


def _is_full(phrase: str, kept: Sequence[Detection], limit: int | None) -> bool:
    """Return whether a phrase has reached its limit of boxes."""
    return limit is not None and sum(other.phrase == phrase for other in kept) >= limit
