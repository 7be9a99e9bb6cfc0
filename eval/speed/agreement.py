"""Do reduced precision and the imitations say the same? IoU of masks, pair by pair."""

from __future__ import annotations

from typing import Any

import numpy as np
from bench import Bench, Kept, kept, models_of
from ours import tiny
from standard_load import head, world_clips
from watching import watch

from openavs.types import RLE, Clip, rle_to_mask

CLIPS = 12  # of the embedded models' world
FRAMES = 2  # of the standard load: whoever computes the same thing does so at every frame


def figures(bench: Bench) -> dict[str, Any]:
    """Agreement of types with trained weights and with random ones, and of the imitations with us."""
    reduced = "bfloat16" if bench.options.dtype in ("float32", "fp32") else bench.options.dtype
    trained = of_trained(world_clips(CLIPS), reduced)
    answer: dict[str, Any] = {"agreement": round(trained, 4), "agreement.dtype": reduced}
    return answer | of_random(bench, reduced)


def of_trained(clips: list[Clip], dtype: str) -> float:
    """The mean IoU of segments of the same phrase, the embedded models in a type and in float32."""
    one, other = ([seen(pipe, clip) for clip in clips] for pipe in (tiny("float32"), tiny(dtype)))
    return mean_iou([frame for clip in one for frame in clip], [frame for clip in other for frame in clip])


def seen(pipe: Any, clip: Clip) -> list[Kept]:
    run = watch(lambda notes: pipe.stream(clip, notes=notes), models_of(pipe), kept)
    return run.answers  # a frame each


def of_random(bench: Bench, reduced: str) -> dict[str, float]:
    """On the standard load: each imitation with us in the same type asking in the same way; types with each other."""
    load = head(bench.load(), FRAMES)
    peers = {name: bench.run(name, load).answers for name in bench.chosen if name != "hf_pipeline"}
    joint = bench.run(bench.our_way("float32"), load).answers
    pairs = {"random.ours": (bench.run(bench.our_way(reduced), load).answers, joint)}
    if alone := peers.keys() & {"naive", "lang_sam"}:
        apart = bench.run(bench.our_way("float32", joint=False), load).answers
        pairs |= {name: (peers[name], apart) for name in sorted(alone)}
    if "grounded_sam2_fp32" in peers:
        pairs["grounded_sam2_fp32"] = (peers["grounded_sam2_fp32"], joint)
        if "grounded_sam2_bf16" in peers:
            pairs["random.grounded_sam2_bf16"] = (peers["grounded_sam2_bf16"], peers["grounded_sam2_fp32"])
    return {f"agreement.{name}": round(mean_iou(*pair), 4) for name, pair in pairs.items()}


def mean_iou(one: list[Kept], other: list[Kept]) -> float:
    """Segments are paired by frame, phrase and rank; one without a partner counts 0, a frame without any nothing."""
    ious: list[float] = []
    for own, theirs in zip(one, other, strict=True):
        ours, peers = by_rank(own), by_rank(theirs)
        pairs = [(ours.get(key), peers.get(key)) for key in ours.keys() | peers.keys()]
        ious += [iou(a, b) if a and b else 0.0 for a, b in pairs]
    return float(np.mean(ious))


def by_rank(answer: Kept) -> dict[tuple[str, int], RLE]:
    """(phrase, rank among the boxes of that phrase) -> mask."""
    ranks: dict[str, int] = {}
    found = {}
    for phrase, _, mask in answer:
        found[phrase, ranks.setdefault(phrase, 0)] = mask
        ranks[phrase] += 1
    return found


def iou(one: RLE, two: RLE) -> float:
    """Of two masks; 1 for two empty ones."""
    a, b = rle_to_mask(one), rle_to_mask(two)
    return float((a & b).sum() / either) if (either := (a | b).sum()) else 1.0
