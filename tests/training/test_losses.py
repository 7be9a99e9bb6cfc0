"""Losses of TPAVI, compared with references by pixel."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from openavs.training.models.dense import binary_loss, semantic_loss
from openavs.training.models.tpavi import avm_loss
from tests.training.test_tpavi import SMALL, batch_of, make


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v - max(values)) for v in values]
    return [p / sum(powers) for p in powers]


def random(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_binary(logits: Tensor, masks: Tensor, weight: Tensor) -> float:
    total = 0.0
    for frame in range(len(logits)):
        losses = [
            -math.log(sigmoid(x)) if y else -math.log(1 - sigmoid(x))
            for x, y in zip(logits[frame].flatten().tolist(), masks[frame].flatten().tolist(), strict=True)
        ]
        total += float(weight[frame]) * sum(losses) / len(losses)
    return total / float(weight.sum())


def slow_semantic(logits: Tensor, masks: Tensor) -> float:
    frames = []
    for frame, labels in zip(logits, masks, strict=True):
        height, width = labels.shape
        losses = [
            -math.log(softmax(frame[:, y, x].tolist())[int(labels[y, x])]) for y in range(height) for x in range(width)
        ]
        frames.append(sum(losses) / len(losses))
    return sum(frames) / len(frames)


def slow_avm(marked: Tensor, maps: list[Tensor], audio: list[Tensor], through_sigmoid: bool) -> list[float]:
    """Per frame, the mean over stages of the divergence; `marked` [M, H, W] is averaged over blocks of pixels."""
    frames = [0.0] * len(marked)
    for stage, sound in zip(maps, audio, strict=True):
        height, width = stage.shape[-2:]
        step = marked.shape[-1] // width
        for frame in range(len(stage)):
            covered = [0.0] * stage.shape[1]
            for y in range(height):
                for x in range(width):
                    mean = float(marked[frame, y * step : (y + 1) * step, x * step : (x + 1) * step].mean())
                    mask = sigmoid(mean) if through_sigmoid else mean
                    for c in range(stage.shape[1]):
                        covered[c] += float(stage[frame, c, y, x]) * mask / (height * width)
            p, q = softmax(covered), softmax(sound[frame].tolist())
            frames[frame] += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)) / len(maps)
    return frames


def test_binary_loss_is_the_mean_over_pixels_and_weighted_frames() -> None:
    logits, masks = random(3, 1, 4, 5), random(3, 4, 5, seed=1) > 0
    weight = torch.tensor([1.0, 0.25, 0.5])
    assert float(binary_loss(logits, masks, torch.ones(3))) == pytest.approx(
        slow_binary(logits, masks, torch.ones(3)), abs=1e-6
    )
    assert float(binary_loss(logits, masks, weight)) == pytest.approx(slow_binary(logits, masks, weight), abs=1e-6)


def test_semantic_loss_is_the_mean_over_pixels_and_frames() -> None:
    logits, masks = random(2, 5, 3, 4), torch.randint(0, 5, (2, 3, 4), generator=torch.Generator().manual_seed(3))
    assert float(semantic_loss(logits, masks, torch.ones(2))) == pytest.approx(slow_semantic(logits, masks), abs=1e-6)


def test_binary_avm_is_summed_over_frames_and_averaged_over_stages() -> None:
    logits = random(3, 1, 8, 8)
    maps = [random(3, 6, size, size, seed=size).relu() for size in (4, 2)]
    audio = [random(3, 6, seed=7), random(3, 6, seed=8)]
    expected = sum(slow_avm(logits[:, 0], maps, audio, through_sigmoid=True))
    for weight in (torch.ones(3), torch.tensor([1.0, 0.0, 0.0])):  # S4 and MS3 count unlabeled frames, as published
        assert float(avm_loss(logits, maps, audio, weight)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("weight", [(1, 1, 1), (1, 0, 0), (1, 0, 0.25)])
def test_avm_of_classes_uses_the_foreground_of_labeled_frames(
    weight: tuple[float, ...],
) -> None:
    logits = random(3, 4, 8, 8)
    maps = [random(3, 6, size, size, seed=size).relu() for size in (4, 2)]
    audio = [random(3, 6, seed=7), random(3, 6, seed=8)]
    marked = (logits.argmax(dim=1) > 0).float()
    frames = slow_avm(marked, maps, audio, through_sigmoid=False)
    expected = sum(w * frame for w, frame in zip(weight, frames, strict=True)) / sum(weight)
    assert float(avm_loss(logits, maps, audio, torch.tensor(weight))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("classes", [(), ("background", "dog", "bell")])
def test_mask_loss_uses_only_labeled_frames(classes: tuple[str, ...]) -> None:
    student = make(replace(SMALL, classes=classes))
    batch = batch_of((5, 3), labeled=((0,), (0, 2)), classes=max(2, len(classes)))
    masks = batch.masks.clone()
    masks[~batch.labeled] = 1  # masks of unlabeled frames are ignored
    output = student(batch)
    loss = student.loss(output, batch)["loss"]
    assert torch.equal(loss, student.loss(output, replace(batch, masks=masks))["loss"])
    background = replace(batch, labeled=batch.present, weight=batch.present.float())  # as if they were background
    assert not torch.equal(loss, student.loss(output, background)["loss"])


def test_s4_loss_uses_the_first_frame_of_each_clip() -> None:
    student, batch = make(), batch_of((5, 5), labeled=((0,), (0,)))
    output = student(batch)
    expected = slow_binary(output.logits[[0, 5]].detach(), batch.masks[:, 0], torch.ones(2))
    assert float(student.loss(output, batch)["loss"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("classes", [(), ("background", "dog", "bell")])
def test_avm_loss_is_weighted_and_uses_positive_maps(classes: tuple[str, ...]) -> None:
    """A clip with its first frame labeled beside one that is fully labeled."""
    student = make(replace(SMALL, avm=0.5, classes=classes))
    batch = batch_of((5, 5), labeled=((0,), range(5)), classes=max(2, len(classes)))
    output = student(batch)
    losses = student.loss(output, batch)
    positive = [maps.clamp(min=0).detach() for maps in output.maps]
    audio = [stage.detach() for stage in output.audio]
    if classes:
        marked = (output.logits.argmax(dim=1) > 0).float()
        frames = slow_avm(marked, positive, audio, through_sigmoid=False)
        expected = sum(frames[i] for i in (0, 5, 6, 7, 8, 9)) / 6  # frames 1 to 4 have no label
    else:
        expected = sum(slow_avm(output.logits[:, 0].detach(), positive, audio, through_sigmoid=True))
    assert float(losses["avm"]) == pytest.approx(expected, rel=1e-4)
    assert float(losses["loss"]) == pytest.approx(float(losses["mask"] + 0.5 * losses["avm"]))


@pytest.mark.parametrize("labeled", [True, False])
def test_avm_of_classes_has_gradients_of_labeled_frames_only(labeled: bool) -> None:
    logits = random(2, 4, 8, 8)
    maps = [random(2, 6, 4, 4).relu().requires_grad_()]
    audio = [random(2, 6, seed=7).requires_grad_()]
    avm_loss(logits, maps, audio, torch.tensor([1.0, float(labeled)])).backward()
    for leaf in (*maps, *audio):
        assert leaf.grad is not None
        assert bool(leaf.grad[0].any()) and bool(leaf.grad[1].any()) == labeled


def test_batch_without_labels_has_zero_loss_and_gradients() -> None:
    student, batch = make(), batch_of((2,), labeled=((),))
    loss = student.loss(student(batch), batch)["loss"]
    loss.backward()
    assert float(loss) == 0.0


def test_empty_masks_are_valid_labels() -> None:
    student, batch = make(), batch_of((2,))
    loss = student.loss(student(batch), replace(batch, masks=torch.zeros_like(batch.masks)))["loss"]
    assert math.isfinite(float(loss)) and float(loss) > 0
