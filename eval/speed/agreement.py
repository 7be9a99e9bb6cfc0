"""Do reduced precision and the imitations say the same? IoU of masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from bench import Bench, Kept, kept, models_of
from ours import tiny
from scipy.optimize import linear_sum_assignment
from standard_load import head, world_clips
from watching import watch

from openavs.structures.boxes import iou as box_iou
from openavs.structures.types import RLE, Clip, rle_to_mask

CLIPS = 12  # of the embedded models' world
ALIKE = 0.98  # IoU from which two boxes are one choice: random scores have near ties, trained ones seldom
FRAMES = 2  # of the standard load: whoever computes the same thing does so at every frame


def figures(bench: Bench) -> dict[str, Any]:
    """Agreement of types, with trained weights and on the load, and of the imitations with us."""
    reduced = "bfloat16" if bench.options.dtype in ("float32", "fp32") else bench.options.dtype
    trained = round(of_trained(world_clips(CLIPS), reduced), 4)
    return {**of_load(bench, reduced), "agreement.tiny": trained, "agreement.dtype": reduced}


def of_trained(clips: list[Clip], dtype: str) -> float:
    """The mean IoU of segments of the same phrase, the embedded models in a type and in float32."""
    one, other = ([seen(pipe, clip) for clip in clips] for pipe in (tiny("float32"), tiny(dtype)))
    return mean_iou([frame for clip in one for frame in clip], [frame for clip in other for frame in clip])


def seen(pipe: Any, clip: Clip) -> list[Kept]:
    run = watch(lambda notes: pipe.stream(clip, context=notes), models_of(pipe), kept)
    return run.answers  # a frame each


def of_load(bench: Bench, reduced: str) -> dict[str, float]:
    """Types with each other, ours and a peer's own; each imitation with us in float32, asking in the same way."""
    load = head(bench.load(), FRAMES)
    peers = {name: bench.run(name, load).answers for name in bench.chosen if name != "hf_pipeline"}
    joint = bench.run(bench.our_way("float32"), load).answers
    low = bench.run(bench.our_way(reduced), load).answers
    pairs = {"agreement": (low, joint)}
    if alone := peers.keys() & {"naive", "lang_sam"}:
        apart = bench.run(bench.our_way("float32", joint=False), load).answers
        pairs |= {f"agreement.{name}": (peers[name], apart) for name in sorted(alone)}
    if "grounded_sam2_fp32" in peers:
        exact = peers["grounded_sam2_fp32"]
        pairs["agreement.grounded_sam2_fp32"] = (exact, joint)
        if "grounded_sam2_bf16" in peers:
            pairs["agreement.grounded_sam2_bf16"] = (peers["grounded_sam2_bf16"], exact)
    answer = {name: round(mean_iou(*pair), 4) for name, pair in pairs.items()}
    alike = [mask for box, mask in overlaps(low, joint) if box >= ALIKE]
    share = len(alike) / sum(len(frame) for frame in joint)
    if alike:
        answer["agreement.same_boxes"] = round(float(np.mean(alike)), 4)
    return answer | {"agreement.same_boxes_share": round(share, 4)}


def mean_iou(one: list[Kept], other: list[Kept]) -> float:
    """Of the masks, over all segments; one without a partner counts 0."""
    return float(np.mean([mask for _, mask in overlaps(one, other)]))


def overlaps(one: list[Kept], other: list[Kept]) -> list[tuple[float, float]]:
    """IoU of boxes and of masks; the segments of one phrase in a frame are paired as they fit best, others have 0."""
    found: list[tuple[float, float]] = []
    for own, theirs in zip(one, other, strict=True):
        for phrase in sorted({name for name, _, _ in (*own, *theirs)}):
            ours, peers = ([(box, mask) for name, box, mask in answer if name == phrase] for answer in (own, theirs))
            pairs = [[(box_iou(a, b), iou(c, d)) for b, d in peers] for a, c in ours]
            both = np.array(pairs).reshape(len(ours), len(peers), 2)
            rows, columns = linear_sum_assignment(both.sum(axis=2), maximize=True)
            found += [pairs[i][k] for i, k in zip(rows.tolist(), columns.tolist(), strict=True)]
            found += [(0.0, 0.0)] * (max(len(ours), len(peers)) - len(rows))
    return found


def iou(one: RLE, two: RLE) -> float:
    """Of two masks; 1 for two empty ones."""
    a, b = rle_to_mask(one), rle_to_mask(two)
    return float((a & b).sum() / either) if (either := (a | b).sum()) else 1.0
