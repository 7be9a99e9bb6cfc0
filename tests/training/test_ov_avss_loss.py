"""The loss, compared with a slow reference by object, frame and point."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from openavs.training.models.ov_avss.config import MatcherWeights
from openavs.training.models.ov_avss.criterion import MatcherTarget, localizer_loss, match, sample_uncertain_points
from openavs.training.models.ov_avss.network import ClipOutput

WEIGHTS = MatcherWeights(points=40)


def output(queries: int = 4, frames: int = 3, seed: int = 0) -> ClipOutput:
    generator = torch.Generator().manual_seed(seed)
    masks = 3 * torch.randn(queries, frames, 8, 12, generator=generator)
    return ClipOutput(torch.randn(queries, 2, generator=generator), masks)


def target(objects: int = 2, frames: tuple[int, ...] = (0, 1, 2), seed: int = 5, weight: float = 1.0) -> MatcherTarget:
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand(objects, len(frames), 32, 48, generator=generator) > 0.5).float()
    return MatcherTarget(masks, torch.tensor(frames), torch.full((len(frames),), weight))


def bilinear(plane: Tensor, x: float, y: float) -> float:
    """A value at (x, y) in [0, 1], with pixel centers at (i + 0.5) / length; 0 beyond the border."""
    height, width = plane.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = 0.0
    for i, j in itertools.product((math.floor(row), math.floor(row) + 1), (math.floor(column), math.floor(column) + 1)):
        if 0 <= i < height and 0 <= j < width:
            total += float(plane[i, j]) * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def entropy(logits: list[float], wanted: list[float]) -> float:
    terms = [max(x, 0.0) - x * y + math.log1p(math.exp(-abs(x))) for x, y in zip(logits, wanted, strict=True)]
    return sum(terms) / len(terms)


def dice(logits: list[float], wanted: list[float]) -> float:
    chance = [1 / (1 + math.exp(-x)) for x in logits]
    overlap = sum(p * y for p, y in zip(chance, wanted, strict=True))
    return 1 - (2 * overlap + 1) / (sum(chance) + sum(wanted) + 1)


def values(plane: Tensor, points: Tensor) -> list[float]:
    return [bilinear(plane, *point) for point in points.tolist()]


def slow_match(got: ClipOutput, wanted: MatcherTarget) -> tuple[int, ...]:
    """The query of each object, by exhaustive search."""
    points = torch.rand(1, WEIGHTS.points, 2)[0]
    own = [[v for t in wanted.frames.tolist() for v in values(q[t], points)] for q in got.masks]
    truth = [[v for frame in masks for v in values(frame, points)] for masks in wanted.masks]
    chance = got.objectness.softmax(-1)[:, 0].tolist()
    cost = [[-2 * chance[q] + 5 * entropy(own[q], y) + 5 * dice(own[q], y) for y in truth] for q in range(len(own))]
    ways = itertools.permutations(range(len(own)), len(truth))
    return min(ways, key=lambda way: sum(cost[q][o] for o, q in enumerate(way)))


def slow_loss(got: ClipOutput, wanted: MatcherTarget) -> float:
    """One clip, one layer; draws from torch's generator in the order of the published code."""
    way = slow_match(got, wanted)
    order = sorted(range(len(way)), key=lambda o: way[o])
    matched = got.masks[[way[o] for o in order]][:, wanted.frames]
    points = sample_uncertain_points(matched, WEIGHTS)
    masks = 0.0
    for i, (place, frame) in enumerate(itertools.product(range(len(order)), range(len(wanted.frames)))):
        logits = values(matched[place, frame], points[i])
        truth = values(wanted.masks[order[place], frame], points[i])
        masks += 5 * entropy(logits, truth) + 5 * dice(logits, truth)
    heads, weight = 0.0, 0.0
    for query, logits in enumerate(got.objectness.tolist()):
        share, column = (1.0, 0) if query in way else (0.1, 1)
        heads += share * (math.log(sum(map(math.exp, logits))) - logits[column])
        weight += share
    return masks / max(1, len(way)) + 2 * heads / weight


@pytest.mark.parametrize("objects", [1, 2, 3])
@pytest.mark.parametrize("frames", [(0, 1, 2), (0,), (1, 2)])
def test_loss_equals_the_slow_reference(objects: int, frames: tuple[int, ...]) -> None:
    got, wanted = output(), target(objects, frames)
    torch.manual_seed(1)
    fast = localizer_loss([[got]], [wanted], WEIGHTS)["loss"]
    torch.manual_seed(1)
    assert fast.item() == pytest.approx(slow_loss(got, wanted), rel=1e-4)


def test_losses_of_all_layers_are_summed() -> None:
    layers, wanted = [output(seed=seed) for seed in range(3)], target()
    torch.manual_seed(1)
    fast = localizer_loss([layers], [wanted], WEIGHTS)["loss"]
    torch.manual_seed(1)
    assert fast.item() == pytest.approx(sum(slow_loss(layer, wanted) for layer in layers), rel=1e-4)


def test_clip_without_objects_has_only_an_objectness_loss() -> None:
    got = output()
    got.masks.requires_grad_()
    nothing = MatcherTarget(torch.zeros(0, 2, 32, 48), torch.tensor([0, 1]), torch.ones(2))
    parts = localizer_loss([[got]], [nothing], WEIGHTS)
    expected = -got.objectness.log_softmax(-1)[:, 1].mean()
    assert parts["mask"] == 0 and parts["dice"] == 0
    torch.testing.assert_close(parts["loss"], 2 * expected)
    parts["loss"].backward()
    assert got.masks.grad is not None and not got.masks.grad.any()


def test_mask_losses_are_divided_by_the_objects_of_the_batch() -> None:
    """Mask losses of clips add up, divided by all objects; objectness is a mean over all queries."""
    outputs, targets = [output(seed=0), output(seed=1)], [target(1), target(3, seed=6)]
    flat = MatcherWeights(points=2000, importance=0.0)
    together = localizer_loss([[a] for a in outputs], targets, flat)
    alone = [localizer_loss([[a]], [t], flat) for a, t in zip(outputs, targets, strict=True)]
    for part in ("mask", "dice"):
        assert together[part].item() == pytest.approx((alone[0][part] + 3 * alone[1][part]).item() / 4, rel=0.02)


def test_process_group_of_one_does_not_change_the_loss(tmp_path: Path) -> None:
    """The number of objects is exchanged between processes (`test_two_processes_train_like_one` has two)."""

    def losses() -> dict[str, float]:
        torch.manual_seed(1)
        return {name: loss.item() for name, loss in localizer_loss([[output()]], [target(3)], WEIGHTS).items()}

    alone = losses()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert losses() == alone
    finally:
        distributed.destroy_process_group()


def test_loss_without_gradients_does_not_communicate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search for the clip of a NaN loss runs on one process; the others wait for gradients."""
    calls: list[int] = []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda objects: calls.append(1))
    with torch.no_grad():
        localizer_loss([[output()]], [target()], WEIGHTS)
    assert not calls
    localizer_loss([[output()]], [target()], WEIGHTS)
    assert calls


def test_loss_is_proportional_to_the_frame_weight() -> None:
    got = output()
    losses = []
    for weight in (1.0, 0.25):
        torch.manual_seed(1)
        losses.append(localizer_loss([[got]], [target(weight=weight)], WEIGHTS)["loss"])
    torch.testing.assert_close(losses[1], 0.25 * losses[0])


def test_frames_without_a_label_have_no_loss() -> None:
    got, wanted = output(), target(2, (0, 2))
    other = ClipOutput(got.objectness, got.masks.clone())
    other.masks[:, 1] = 7.0
    losses = []
    for one in (got, other):
        torch.manual_seed(1)
        losses.append(localizer_loss([[one]], [wanted], WEIGHTS)["loss"])
    assert torch.equal(*losses)


def test_objects_are_matched_to_their_masks() -> None:
    wanted = target(3)
    shrunk = torch.nn.functional.interpolate(wanted.masks, size=(32, 48))
    got = ClipOutput(torch.zeros(5, 2), torch.full((5, 3, 32, 48), -8.0))
    for query, thing in [(4, 0), (1, 1), (2, 2)]:
        got.masks[query] = 16 * shrunk[thing] - 8
    queries, things = match(got.objectness, got.masks, wanted, WEIGHTS)
    assert dict(zip(things.tolist(), queries.tolist(), strict=True)) == {0: 4, 1: 1, 2: 2}


def test_mask_that_is_not_finite_is_matched_last() -> None:
    got = output(queries=3)
    got.masks[0] = float("nan")
    queries, _ = match(got.objectness, got.masks, target(2), WEIGHTS)
    assert queries.tolist() == [1, 2]


def test_points_concentrate_on_uncertain_pixels() -> None:
    masks = torch.full((1, 1, 8, 8), 9.0)
    masks[..., 4:] = -9.0
    torch.manual_seed(0)
    points = sample_uncertain_points(masks, MatcherWeights(points=400))
    near = ((points[0, :, 0] - 0.5).abs() < 1 / 16).float().mean()  # between the centers of two pixels
    assert points.shape == (1, 400, 2)
    assert near > 0.35  # an eighth if the points were uniform
