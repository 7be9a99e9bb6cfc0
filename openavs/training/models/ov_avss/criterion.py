"""The loss of the localiser: objectness of every query, cross-entropy and dice of those that answer for an object.

Mask2Former's loss with a time axis. Masks are compared in points, three quarters of which lie where the prediction is
least sure, drawn for each frame of each object. As in the published code the sums over frames are divided by the number
of objects, not of their frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed
from torch.nn import functional as F

from openavs.training.models.ov_avss.matcher import NONE, OBJECT, MatcherTarget, MatcherWeights, match, sampled
from openavs.training.models.ov_avss.network import ClipOutput

Matches = list[tuple[torch.Tensor, torch.Tensor]]


def localiser_loss(
    answers: Sequence[Sequence[ClipOutput]], targets: Sequence[MatcherTarget], weights: MatcherWeights
) -> dict[str, torch.Tensor]:
    """The losses of all layers, each with an assignment of its own: their weighted sum `loss`, and the parts.

    `answers` are those of each clip, by layer. `objectness`, `mask` and `dice` are of the last layer, not weighted.
    """
    parts = [_layer_loss(layer, targets, weights) for layer in zip(*answers, strict=True)]
    factors = {"objectness": weights.objectness, "mask": weights.mask, "dice": weights.dice}
    total = torch.stack([factor * part[name] for part in parts for name, factor in factors.items()]).sum()
    return {"loss": total, **{name: part.detach() for name, part in parts[-1].items()}}


def _layer_loss(
    layer: Sequence[ClipOutput], targets: Sequence[MatcherTarget], weights: MatcherWeights
) -> dict[str, torch.Tensor]:
    matches = [match(*answer, target, weights) for answer, target in zip(layer, targets, strict=True)]
    mask, dice = _mask_losses([answer.masks for answer in layer], targets, matches, weights)
    objectness = torch.stack([answer.objectness for answer in layer])
    return {"objectness": objectness_loss(objectness, targets, matches, weights), "mask": mask, "dice": dice}


def objectness_loss(
    logits: torch.Tensor, targets: Sequence[MatcherTarget], matches: Matches, weights: MatcherWeights
) -> torch.Tensor:
    """Weighted mean cross-entropy of `[B, Q, 2]`; queries without an object count `weights.none` each.

    A clip counts as much as its labeled frames do on average.
    """
    wanted = torch.full(logits.shape[:2], NONE, device=logits.device)
    for clip, (queries, _) in enumerate(matches):
        wanted[clip, queries] = OBJECT
    share = torch.where(wanted == OBJECT, 1.0, weights.none)
    trust = torch.stack([target.weight.mean() for target in targets])[:, None]
    losses = F.cross_entropy(logits.float().transpose(1, 2), wanted, reduction="none")
    return (trust * share * losses).sum() / share.sum()


def _mask_losses(
    masks: Sequence[torch.Tensor], targets: Sequence[MatcherTarget], matches: Matches, weights: MatcherWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and dice, summed over all frames of all objects and divided by the number of objects."""
    count = _objects(sum(len(objects) for _, objects in matches), masks[0].device)
    # Where nothing sounds the masks stay in the graph, so that every parameter has a gradient.
    entropy = dice = torch.stack([own.sum() for own in masks]).sum() * 0.0
    for own, target, (queries, objects) in zip(masks, targets, matches, strict=True):
        if len(queries):
            asked = own[queries][:, target.frames].float()
            points = uncertain_points(asked.detach(), weights)
            logits, wanted = sampled(asked, points), sampled(target.masks[objects], points)
            entropy = entropy + (target.weight * point_entropy(logits, wanted)).sum()
            dice = dice + (target.weight * point_dice(logits, wanted)).sum()
    return entropy / count, dice / count


def point_entropy(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, averaged over the last axis."""
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)


def point_dice(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """`1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1)` over the last axis."""
    chance = logits.sigmoid()
    return 1 - (2 * (chance * wanted).sum(-1) + 1) / (chance.sum(-1) + wanted.sum(-1) + 1)


@torch.no_grad()
def uncertain_points(masks: torch.Tensor, weights: MatcherWeights) -> torch.Tensor:
    """Points in [0, 1] (x, y), `[N * L, P, 2]`, for mask logits `[N, L, h, w]`.

    Of `oversample * P` random points those with logits nearest to 0 are kept, up to the share `importance` of P; the
    rest is drawn anew (PointRend).
    """
    planes, sure = masks.shape[0] * masks.shape[1], int(weights.importance * weights.points)
    drawn = torch.rand(planes, int(weights.points * weights.oversample), 2, device=masks.device)
    doubt = -sampled(masks, drawn).abs().flatten(0, 1)
    best = doubt.topk(sure, dim=1).indices
    kept = drawn.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.cat([kept, torch.rand(planes, weights.points - sure, 2, device=masks.device)], dim=1)


def _objects(count: int, device: torch.device) -> torch.Tensor:
    """The number of objects to divide by: the mean over all processes, at least 1.

    Without gradients it is one process that asks by itself, and the others are elsewhere.
    """
    objects = torch.tensor(float(count), device=device)
    if torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(objects)
        objects /= distributed.get_world_size()
    return objects.clamp(min=1.0)
