"""Rules that keep or reject boxes (threshold, non-maximum suppression, limits) and segments (area, verdicts).

With `linked_threshold`, a box with a low score is kept if the frame before or after has a kept box of its phrase at the
same place: a detector that misses an object for a frame often scores its box just below the threshold (ByteTrack,
arXiv 2110.06864, links such boxes to tracks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from openavs.config.recipe import PipelineConfig
from openavs.stages.vocabulary import ClassMapper
from openavs.structures.masks import iou
from openavs.structures.types import Detection, Frame, Mask, Prompt, Rejection, Segment, Verdict

LINK_IOU = 0.5
"""Least IoU of the boxes of one object in neighboring frames."""

LINK_SECONDS = 1.5
"""Frames that are further apart are not neighbors."""


@dataclass(frozen=True, eq=False)
class FrameBoxes:
    """A frame between the detector and the segmenter.

    Attributes:
        frame: the frame.
        prompts: its prompts.
        key: whether the detector ran on it.
        candidates: the detector's boxes.
        masks: masks of the candidates, from a model that gives both.
        kept: the candidates that are kept, best first.
        rejected: boxes and phrases that are not, with the reason.
    """

    frame: Frame
    prompts: Sequence[Prompt] = ()
    key: bool = False
    candidates: Sequence[Detection] = ()
    masks: Mapping[Detection, Mask] | None = None
    kept: Sequence[Detection] = ()
    rejected: Sequence[Rejection] = ()


def filter_frames(
    frames: Iterable[FrameBoxes], rules: PipelineConfig, knows: Callable[[str], bool]
) -> Iterator[FrameBoxes]:
    """Yield the frames of a clip, in order, with the boxes that are kept and the rejections.

    With `linked_threshold`, the output is one key frame behind; its boxes are linked with those that the key frames
    around it keep by themselves, so links do not spread.
    """

    def filtered(found: FrameBoxes, neighbors: Iterable[FrameBoxes] = ()) -> FrameBoxes:
        near = [n for n in neighbors if abs(n.frame.time - found.frame.time) <= LINK_SECONDS]
        linked = [box for neighbor in near for box in neighbor.kept]
        kept, rejected = filter_detections(found.candidates, found.prompts, rules, knows, linked)
        return replace(found, kept=kept, rejected=rejected)

    if rules.linked_threshold is None:
        yield from (filtered(found) if found.key else found for found in frames)
        return
    held: list[FrameBoxes] = []  # a key frame, and the frames up to the next one
    around: list[FrameBoxes] = []  # the key frame before it, and itself, both filtered by themselves
    for found in frames:
        if found.key:
            alone = filtered(found)
            if around:
                held[0] = filtered(held[0], (*around[:-1], alone))
            yield from held
            held, around = [], [*around[-1:], alone]
        held.append(found)
    if around:
        held[0] = filtered(held[0], around[:-1])
    yield from held


def filter_detections(
    candidates: Sequence[Detection],
    prompts: Sequence[Prompt],
    rules: PipelineConfig,
    knows: Callable[[str], bool] = lambda phrase: True,
    linked: Sequence[Detection] = (),
) -> tuple[list[Detection], list[Rejection]]:
    """Return the boxes of a frame that are kept, best first, and the rejections.

    Boxes below the threshold (a phrase's further boxes may have a higher one, those at the place of a box of `linked` a
    lower one), boxes that a better box covers and boxes over the limits are rejected. A phrase without any box is
    rejected as `not found`, as `unknown word` if the detector does not know it, or as `below threshold` if its best box
    was close. Candidates of phrases that are not among the prompts are ignored.
    """
    unlikely, rejected = _less_likely(candidates, prompts, rules)
    kept: list[Detection] = []
    phrases = {prompt.phrase for prompt in prompts} - unlikely
    near: dict[str, Detection] = {}  # the best box below the threshold, by phrase
    for box in sorted((c for c in candidates if c.phrase in phrases), key=lambda c: -c.score):
        if box.score < _threshold(box, kept, rules, linked):
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


FrameSegments = tuple[tuple[Segment, ...], tuple[Rejection, ...]]
"""Segments of a frame, and the prompts and boxes that were rejected."""


def make_segments(boxes: FrameBoxes, masks: Sequence[Mask], label: ClassMapper, min_area: int) -> FrameSegments:
    """Make labeled segments of the kept boxes and their masks; empty masks and masks below `min_area` are rejected."""
    segments, rejected = [], list(boxes.rejected)
    for box, mask in zip(boxes.kept, masks, strict=True):
        if mask.rle.area < max(min_area, 1):
            rejected.append(Rejection(box.phrase, "empty mask", box.score, box.box))
        else:
            segments.append(Segment(mask.rle, box.box, box.phrase, box.score, mask.score, *label(box.phrase)))
    return tuple(segments), tuple(rejected)


def apply_verdicts(found: FrameSegments, verdicts: Sequence[Verdict]) -> FrameSegments:
    """Return the segments that a verifier keeps, with its verdicts; the others are rejected."""
    segments, rejected = [], list(found[1])
    for segment, verdict in zip(found[0], verdicts, strict=True):
        if verdict.kept:
            segments.append(replace(segment, verdicts=(*segment.verdicts, verdict)))
        else:
            name = verdict.verifier or None
            rejected.append(Rejection(segment.phrase, "verifier", verdict.score, segment.box, verdict.margin, name))
    return tuple(segments), tuple(rejected)


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


def _threshold(box: Detection, kept: Sequence[Detection], rules: PipelineConfig, linked: Sequence[Detection]) -> float:
    """Return the least score of a box, from the boxes that are kept so far and those of the neighboring frames."""
    threshold = rules.box_threshold
    if rules.repeat_threshold is not None and any(other.phrase == box.phrase for other in kept):
        threshold = max(threshold, rules.repeat_threshold)
    if rules.linked_threshold is not None and any(_is_same(box, other) for other in linked):
        threshold = min(threshold, rules.linked_threshold)
    return threshold


def _is_same(box: Detection, other: Detection) -> bool:
    """Return whether boxes of neighboring frames are of one object."""
    return box.phrase == other.phrase and iou(box.box, other.box) >= LINK_IOU


def _is_full(phrase: str, kept: Sequence[Detection], limit: int | None) -> bool:
    """Return whether a phrase has reached its limit of boxes."""
    return limit is not None and sum(other.phrase == phrase for other in kept) >= limit
