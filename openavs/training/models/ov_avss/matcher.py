"""Matching of queries and objects: the one-to-one assignment of the least cost over all labeled frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from transformers.models.mask2former.modeling_mask2former import (
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
    sample_point,
)

OBJECT, NO_OBJECT = 0, 1
"""Columns of the objectness logits."""


@dataclass(frozen=True, eq=False)
class MatcherTarget:
    """The N sounding objects of a clip with L labeled frames. A mask may be empty in some of the frames."""

    masks: torch.Tensor  # float [N, L, H, W], 0 and 1
    frames: torch.Tensor  # int64 [L], indices of the labeled frames
    weight: torch.Tensor  # [L], weight in [0, 1] of each frame


@dataclass(frozen=True)
class MatcherWeights:
    """Weights of the losses and of the matching costs, and the sampling of points; the defaults are published.

    Attributes:
        objectness, mask, dice: factors of the terms.
        no_object: weight of a query without an object in the objectness loss.
        points: points of a mask that are compared.
        oversample: random candidates per point of the mask loss.
        importance: share of the points selected by uncertainty; the others are random.
    """

    objectness: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    no_object: float = 0.1
    points: int = 12_544
    oversample: float = 3.0
    importance: float = 0.75


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
