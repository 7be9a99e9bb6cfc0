"""Loss of the localizer: objectness of all queries, cross-entropy and dice of the masks of matched queries.

Mask2Former's loss with a time axis. Masks are compared at points sampled for each frame of each object, three quarters
of them where the prediction is least certain. As in the published code, the sums over frames are divided by the number
of objects, not by the number of their frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import distributed
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import (
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
    sample_point,
)

from openavs.training.models.ov_avss.config import MatcherWeights
from openavs.training.models.ov_avss.network import ClipOutput

OBJECT, NO_OBJECT = 0, 1
"""Columns of the objectness logits."""


@dataclass(frozen=True, eq=False)
class MatcherTarget:
    """The N sounding objects of a clip with L labeled frames. A mask may be empty in some of the frames."""

    masks: torch.Tensor  # float [N, L, H, W], 0 and 1
    frames: torch.Tensor  # int64 [L], indices of the labeled frames
    weight: torch.Tensor  # [L], weight in [0, 1] of each frame


@torch.no_grad()
def match(
    objectness: torch.Tensor, masks: torch.Tensor, target: MatcherTarget, weights: MatcherWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of the matched queries and objects of one clip.

    Cost: -2 p(object) + 5 cross-entropy + 5 dice, at uniformly sampled points, the same for all masks and frames.

    Args:
        objectness: logits `[Q, 2]`.
        masks: logits `[Q, T, h, w]`.
        target: the objects of the clip.
        weights: weights of the cost, and the number of points.
    """
    if not len(target.masks):
        empty = torch.zeros(0, dtype=torch.long, device=masks.device)
        return empty, empty
    labeled = masks[:, target.frames].float()
    points = torch.rand(1, weights.points, 2, device=masks.device)
    predicted, truth = (sample_points(stack, points).flatten(1) for stack in (labeled, target.masks))
    cost = weights.mask * pair_wise_sigmoid_cross_entropy_loss(predicted, truth)
    cost = cost - weights.objectness * objectness.float().softmax(-1)[:, OBJECT, None]
    cost = cost + weights.dice * pair_wise_dice_loss(predicted, truth)
    # A query whose cost is not finite is matched only if no other query is left.
    worst = torch.finfo(cost.dtype).max
    rows, columns = linear_sum_assignment(cost.nan_to_num(worst, worst, worst).cpu())
    return torch.as_tensor(rows, device=masks.device), torch.as_tensor(columns, device=masks.device)


def sample_points(stack: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Sample masks `[N, L, H, W]` bilinearly at points in [0, 1], `[1 or N * L, P, 2]`; return `[N, L, P]`."""
    flat = stack.flatten(0, 1)[:, None]
    values: torch.Tensor = sample_point(flat, points.expand(len(flat), -1, -1), align_corners=False)
    return values.reshape(*stack.shape[:2], -1)


Matches = list[tuple[torch.Tensor, torch.Tensor]]
"""For each clip the indices of the matched queries and of their objects."""


def localizer_loss(
    outputs: Sequence[Sequence[ClipOutput]], targets: Sequence[MatcherTarget], weights: MatcherWeights
) -> dict[str, torch.Tensor]:
    """Return the weighted sum of the losses of all layers, `loss`, and the unweighted terms of the last layer.

    Args:
        outputs: for each clip the outputs of each layer; each layer is matched separately.
        targets: the objects of each clip.
        weights: factors of the terms, and the sampling of points.
    """
    parts = [_layer_loss(layer, targets, weights) for layer in zip(*outputs, strict=True)]
    factors = {"objectness": weights.objectness, "mask": weights.mask, "dice": weights.dice}
    total = torch.stack([factor * part[name] for part in parts for name, factor in factors.items()]).sum()
    return {"loss": total, **{name: part.detach() for name, part in parts[-1].items()}}


def _layer_loss(
    layer: Sequence[ClipOutput], targets: Sequence[MatcherTarget], weights: MatcherWeights
) -> dict[str, torch.Tensor]:
    matches = [match(*output, target, weights) for output, target in zip(layer, targets, strict=True)]
    mask, dice = _mask_losses([output.masks for output in layer], targets, matches, weights)
    objectness = torch.stack([output.objectness for output in layer])
    return {"objectness": objectness_loss(objectness, targets, matches, weights), "mask": mask, "dice": dice}


def objectness_loss(
    logits: torch.Tensor, targets: Sequence[MatcherTarget], matches: Matches, weights: MatcherWeights
) -> torch.Tensor:
    """Return the weighted mean cross-entropy of logits `[B, Q, 2]`.

    Queries without an object have the weight `weights.no_object`. The weight of a clip is the mean of its labeled
    frames' weights.
    """
    truth = torch.full(logits.shape[:2], NO_OBJECT, device=logits.device)
    for clip, (queries, _) in enumerate(matches):
        truth[clip, queries] = OBJECT
    query_weight = torch.where(truth == OBJECT, 1.0, weights.no_object)
    clip_weight = torch.stack([target.weight.mean() for target in targets])[:, None]
    losses = F.cross_entropy(logits.float().transpose(1, 2), truth, reduction="none")
    return (clip_weight * query_weight * losses).sum() / query_weight.sum()


def _mask_losses(
    masks: Sequence[torch.Tensor], targets: Sequence[MatcherTarget], matches: Matches, weights: MatcherWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cross-entropy and dice, summed over all frames of all objects and divided by the number of objects."""
    count = _object_count(sum(len(objects) for _, objects in matches), masks[0].device)
    # Without objects the masks stay in the graph, so that every parameter has a gradient.
    entropy = dice = torch.stack([own.sum() for own in masks]).sum() * 0.0
    for own, target, (queries, objects) in zip(masks, targets, matches, strict=True):
        if len(queries):
            matched = own[queries][:, target.frames].float()
            points = sample_uncertain_points(matched.detach(), weights)
            logits, truth = sample_points(matched, points), sample_points(target.masks[objects], points)
            entropy = entropy + (target.weight * point_cross_entropy(logits, truth)).sum()
            dice = dice + (target.weight * point_dice(logits, truth)).sum()
    return entropy / count, dice / count


def point_cross_entropy(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the mean binary cross-entropy over the last axis."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(-1)


def point_dice(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return `1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1)` over the last axis."""
    probability = logits.sigmoid()
    return 1 - (2 * (probability * truth).sum(-1) + 1) / (probability.sum(-1) + truth.sum(-1) + 1)


@torch.no_grad()
def sample_uncertain_points(masks: torch.Tensor, weights: MatcherWeights) -> torch.Tensor:
    """Sample points (x, y) in [0, 1], `[N * L, P, 2]`, for mask logits `[N, L, h, w]`.

    Of `oversample * P` random points the `importance * P` with logits nearest to 0 are kept; the others are new random
    points (PointRend, arXiv 1912.08193, section 3.2).
    """
    planes, uncertain = masks.shape[0] * masks.shape[1], int(weights.importance * weights.points)
    candidates = torch.rand(planes, int(weights.points * weights.oversample), 2, device=masks.device)
    uncertainty = -sample_points(masks, candidates).abs().flatten(0, 1)
    best = uncertainty.topk(uncertain, dim=1).indices
    kept = candidates.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.cat([kept, torch.rand(planes, weights.points - uncertain, 2, device=masks.device)], dim=1)


def _object_count(count: int, device: torch.device) -> torch.Tensor:
    """Return the number of objects to divide by: the mean over all processes, at least 1."""
    objects = torch.tensor(float(count), device=device)
    # Without gradients a single process looks for the clip of a loss that is not finite; the others would not answer.
    if torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(objects)
        objects /= distributed.get_world_size()
    return objects.clamp(min=1.0)
