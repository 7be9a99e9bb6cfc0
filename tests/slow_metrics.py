"""Slow references of the metrics, written from the published formulas and not from the package's code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


def slow_j(probability: Array, truth: Array) -> float:
    """J of a batch `[N, H, W]`, pixel sums in float32 tensors."""
    predicted = (torch.from_numpy(probability) > 0.5).float()
    true = torch.from_numpy(truth).float()
    scores = []
    for p, y in zip(predicted, true, strict=True):
        if y.sum() == 0:
            inter, union = ((1 - y) * (1 - p)).sum(), torch.tensor(float(y.numel()))
        else:
            inter, union = (p * y).sum(), torch.maximum(p, y).sum()
        scores.append(inter / (union + 1e-7))
    return float(torch.stack(scores).sum() / len(scores))


def slow_curve(probability: Array, truth: Array) -> torch.Tensor:
    """The F of one frame at each threshold: 255 comparisons, float32."""
    prob, true = torch.from_numpy(probability), torch.from_numpy(truth).float()
    curve = torch.zeros(255)
    for k, threshold in enumerate(torch.linspace(0, 1 - 1e-10, 255)):
        selected = (prob >= threshold).float()
        hit = (selected * true).sum()
        precision, recall = hit / (selected.sum() + 1e-20), hit / (true.sum() + 1e-20)
        curve[k] = (1 + 0.3) * precision * recall / (0.3 * precision + recall)
    return torch.nan_to_num(curve, nan=0.0)


def slow_f(probability: Array, truth: Array) -> float:
    """F of a batch `[N, H, W]`: mean curve of the frames with truth, its maximum; 0 without any."""
    curves = [slow_curve(p, y) for p, y in zip(probability, truth, strict=True) if y.any()]
    total = torch.zeros(255)
    for curve in curves:
        total = total + curve
    return float((total / len(curves)).max()) if curves else 0.0


def slow_official(clips: list[tuple[Array, Array]], size: int) -> tuple[float, float]:
    batches = [clips[i : i + size] for i in range(0, len(clips), size)]
    merged = [tuple(np.concatenate([clip[k] for clip in batch]) for k in (0, 1)) for batch in batches]
    return float(np.mean([slow_j(p, y) for p, y in merged])), float(np.mean([slow_f(p, y) for p, y in merged]))


def slow_semantic(
    frames: list[tuple[Array, Array]], classes: int
) -> tuple[list[float], list[float], list[int], list[bool]]:
    """Per-class sums of IoU and F, the number of frames that hold a class, and whether any truth does."""
    iou, f, held, true = [0.0] * classes, [0.0] * classes, [0] * classes, [False] * classes
    for predicted, label in frames:
        seen = label >= 0
        for c in range(classes):
            hit = int(((predicted == c) & (label == c) & seen).sum())
            area, goal = int(((predicted == c) & seen).sum()), int((label == c).sum())
            union = area + goal - hit
            if not union:
                continue
            held[c] += 1
            true[c] = true[c] or goal > 0
            iou[c] += hit / (union + 2.2e-16)
            if hit:
                p, r = hit / area, hit / goal
                f[c] += 1.3 * p * r / (0.3 * p + r)
    return iou, f, held, true


def slow_semantic_figures(clips: list[tuple[Array, Array]], classes: int, protocol: str, pad_to: int = 10) -> Any:
    """`miou` and `f` of AVSS over clips of label maps; `official` pads each clip with empty frames."""
    frames = [(p, y) for clip in clips for p, y in zip(*clip, strict=True)]
    if protocol == "official":
        blank = np.zeros_like(frames[0][1])
        frames += [(blank, blank)] * sum(pad_to - len(truth) for _, truth in clips)
    iou, f, held, true = slow_semantic(frames, classes)
    counted = range(classes) if protocol == "official" else [c for c in range(classes) if true[c]]
    means = [[sums[c] / held[c] if held[c] else 0.0 for c in counted] for sums in (iou, f)]
    return {"miou": float(np.mean(means[0])), "f": float(np.mean(means[1]))}


def slow_open_vocabulary(
    clips: list[tuple[Array, Array]], base: Sequence[int], novel: Sequence[int], classes: int, protocol: str
) -> dict[str, float | None]:
    """AVSBench-OV's figures from all pixels at once; a class counts if it is held (`official`) or true (`fixed`)."""
    predicted, truth = (np.concatenate([clip[k].ravel() for clip in clips]) for k in (0, 1))
    inside = (truth >= 0) & (truth < classes)
    ious: dict[int, float] = {}
    for c in range(classes):
        union = ((predicted == c) | (truth == c)) & inside
        if (union if protocol == "official" else truth == c).any():
            ious[c] = float(((predicted == c) & (truth == c)).sum() / union.sum())

    def mean(group: Sequence[int]) -> float | None:
        held = [ious[c] for c in group if c in ious]
        return float(np.mean(held)) if held else None

    b, n = mean(base), mean(novel)
    both = b is not None and n is not None
    undefined = 0.0 if protocol == "official" else None
    harmonic = (2 * b * n / (b + n) if b + n else 0.0) if both else undefined  # type: ignore[operator]
    return {"miou": mean(range(classes)), "base": b, "novel": n, "harmonic": harmonic}
