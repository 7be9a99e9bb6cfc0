"""Which query answers for which object: the cheapest one-to-one assignment, judged over all labeled frames at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from transformers.models.mask2former.modeling_mask2former import (
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
    sample_point,
)

OBJECT, NONE = 0, 1
"""The columns of the objectness logits."""


@dataclass(frozen=True, eq=False)
class MatcherTarget:
    """What sounds in one clip: `masks` float `[N, L, H, W]` of N objects in its L labeled frames, which are `frames`.

    `weight` `[L]` in [0, 1] is how much each frame counts. An object may be empty in some of the frames.
    """

    masks: torch.Tensor
    frames: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class MatcherWeights:
    """What the losses and the costs of the assignment are multiplied with, and how many points they look at."""

    objectness: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    none: float = 0.1
    points: int = 12_544
    oversample: float = 3.0
    importance: float = 0.75


@torch.no_grad()
def match(
    objectness: torch.Tensor, masks: torch.Tensor, target: MatcherTarget, weights: MatcherWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the queries and of the objects that belong together, for one clip.

    Cost: 2 (-p) + 5 cross-entropy + 5 dice, with masks looked at in uniformly drawn points, the same for all
    masks and frames. A cost that is not finite is taken as the highest, so that it is only chosen for want of another.

    Args:
        objectness: logits `[Q, 2]`.
        masks: logits `[Q, T, h, w]`.
    """
    if not len(target.masks):
        nobody = torch.zeros(0, dtype=torch.long, device=masks.device)
        return nobody, nobody
    asked = masks[:, target.frames].float()
    points = torch.rand(1, weights.points, 2, device=masks.device)
    own, wanted = (sampled(stack, points).flatten(1) for stack in (asked, target.masks))
    cost = weights.mask * pair_wise_sigmoid_cross_entropy_loss(own, wanted)
    cost = cost - weights.objectness * objectness.float().softmax(-1)[:, OBJECT, None]
    cost = cost + weights.dice * pair_wise_dice_loss(own, wanted)
    worst = torch.finfo(cost.dtype).max
    rows, columns = linear_sum_assignment(cost.nan_to_num(worst, worst, worst).cpu())
    return torch.as_tensor(rows, device=masks.device), torch.as_tensor(columns, device=masks.device)


def sampled(stack: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear values of `[N, L, H, W]` at `points` in [0, 1], `[1, P, 2]` or `[N * L, P, 2]`: `[N, L, P]`."""
    flat = stack.flatten(0, 1)[:, None]
    values = sample_point(flat, points.expand(len(flat), -1, -1), align_corners=False)
    taken: torch.Tensor = values.reshape(*stack.shape[:2], -1)
    return taken
