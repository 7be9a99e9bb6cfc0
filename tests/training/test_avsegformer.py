"""AVSegFormer: sizes, reordered products, independent frames, losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from openavs.errors import InputError
from openavs.evaluation.datasets.tables import CLASSES
from openavs.training.models.avsegformer import (
    AudioVisualMixer,
    AvSegFormer,
    AvSegFormerConfig,
    MaskMerger,
    _pixel_centers,
    _sine_positions,
    dice_loss,
    mixing_loss,
)
from tests.training.test_tpavi import batch_of, short

SMALL = AvSegFormerConfig(
    backbone="pvt_v2_tiny",
    side=64,
    channels=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    query_layers=1,
    queries=5,
    ffn=32,
    query_ffn=32,
    mask_ffn=16,
    dropout=0.0,
)


def make(config: AvSegFormerConfig = SMALL, seed: int = 0) -> AvSegFormer:
    torch.manual_seed(seed)
    return AvSegFormer(config).eval()


# ------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("backbone", "classes", "head", "unused"),
    [("pvt_v2_b5", (), 32_436_288, 2_102_208), ("resnet50", CLASSES, 33_161_664, 2_104_448)],
    ids=["binary", "classes"],
)
def test_numbers_of_parameters_are_the_published_ones(
    backbone: str, classes: tuple[str, ...], head: int, unused: int
) -> None:
    """All behind the backbone, counted in the published code; it does not use its pyramid and second head."""
    with torch.device("meta"):
        student = AvSegFormer(AvSegFormerConfig(backbone=backbone, classes=tuple(classes)))
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in student.named_children()}
    assert parts.pop("audio_projection") == 129 * 256
    assert parts.pop("backbone") > 20_000_000
    assert sum(parts.values()) == head - unused


# ----------------------------------------------------------------------------------------------------------- products


def test_merged_masks_equal_convolutions_of_the_masks_of_all_queries() -> None:
    torch.manual_seed(1)
    merger, queries, maps = MaskMerger(5, 16, 32), torch.randn(2, 5, 32), torch.randn(2, 32, 4, 6)
    masks = torch.einsum("nqc,nchw->nqhw", queries, maps)
    expected = merger.conv3(merger.conv2(merger.conv1(masks).relu()).relu())
    assert torch.allclose(merger(queries, maps), expected, atol=1e-5)


def test_mixer_weighs_channels_by_what_the_audio_reads() -> None:
    torch.manual_seed(1)
    mixer, maps, audio = AudioVisualMixer(8, 2), torch.randn(1, 8, 3, 3), torch.randn(1, 1, 8)
    query, (keys, values) = mixer.query(audio)[0, 0], mixer.key_value(maps[0].flatten(1).T).split(8, dim=1)
    read = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = (keys[:, head] @ query[head] / math.sqrt(4)).softmax(dim=0)
        read.append(weights @ values[:, head])
    expected = maps * mixer.out(torch.cat(read)).sigmoid()[None, :, None, None]
    assert torch.allclose(mixer(maps, audio), expected, atol=1e-6)


def test_positions_are_sines_of_the_row_and_then_of_the_column() -> None:
    codes = _sine_positions(3, 5, 8, torch.device("cpu")).reshape(3, 5, 8)
    for row, column in ((0, 0), (2, 1), (1, 4)):
        for at in range(8):
            position, channel = (row, at) if at < 4 else (column, at - 4)
            angle = (position + 1) / 10000 ** (2 * (channel // 2) / 4)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert float(codes[row, column, at]) == pytest.approx(expected, abs=1e-6)
    assert _pixel_centers(2, 4, torch.device("cpu"))[5].tolist() == [0.375, 0.75]  # row 1, column 1


def test_sampling_points_start_around_the_pixel_in_the_direction_of_their_head() -> None:
    attention: Any = make(replace(SMALL, heads=4)).encoder.layers[0].self_attn
    offsets = attention.sampling_offsets.bias.reshape(4, 3, 4, 2)
    assert torch.allclose(offsets[0, 1], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]), atol=1e-6)
    assert torch.allclose(offsets[1, 2, 0], torch.tensor([0.0, 1.0]), atol=1e-6)
    assert not attention.sampling_offsets.weight.any()


# ------------------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("name", ["pvt_v2_tiny", "resnet_tiny"])
def test_labeled_frames_alone_give_the_same_loss_and_gradients(name: str) -> None:
    batch = batch_of((5, 3), labeled=((0,), (0, 2)))
    answers = []
    for every in (False, True):
        student = make(replace(SMALL, backbone=name)).train()
        if every:  # all frames are computed, and the others are masked in the loss
            all_labeled = replace(batch, labeled=batch.present)
            output = student(all_labeled)
            assert len(output.logits) == 8
        else:
            output = student(batch)
            assert len(output.logits) == 3
        loss = student.loss(output, batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
        answers.append((float(loss.detach()), gradients))
    (value, gradient), (expected, whole) = answers
    assert value == pytest.approx(expected, abs=1e-6) and gradient.shape == whole.shape
    assert torch.allclose(gradient, whole, atol=1e-5)


def test_frames_do_not_depend_on_each_other_or_on_the_padding() -> None:
    student, batch = make(), batch_of((4, 2))
    together = student.predict(batch, None)
    (alone,) = student.predict(short(batch, 1), None)
    frames = batch.frames.clone()
    frames[0, 3], frames[1, 2:] = 255 - frames[0, 3], 200
    other = student.predict(replace(batch, frames=frames), None)
    probabilities = [answer.probability for answer in (*together, alone, *other)]
    first, second, single, changed, padded = probabilities
    assert first is not None and changed is not None and first.shape == (4, 48, 80)
    assert np.abs(second - single).max() < 1e-5 and np.abs(second - padded).max() < 1e-5  # type: ignore[operator]
    assert np.abs(first[:3] - changed[:3]).max() < 1e-5 < np.abs(first[3] - changed[3]).max()


def test_every_trained_parameter_takes_part_and_the_audio_changes_the_masks() -> None:
    student, batch = make().train(), batch_of((3,))
    output = student(batch)
    student.loss(output, batch)["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    other = student.eval()(replace(batch, audio=batch.audio.flip(2)))
    assert (other.logits - output.logits).abs().max() > 1e-4


def test_label_map_has_the_classes_of_the_benchmark() -> None:
    names = ("background", "dog", "bell")
    student = make(replace(SMALL, classes=names))
    batch = batch_of((3, 2), classes=3)
    answers = student.predict(batch, names)
    assert {one.label for answer in answers for frame in answer.frames for one in frame} <= {"dog", "bell"}
    losses = student.loss(student(batch), batch)
    entropy = functional.cross_entropy(student(batch).logits, batch.masks[batch.labeled].long())
    assert float(losses["mask"]) == pytest.approx(float(entropy), abs=1e-5)
    assert float(losses["loss"]) == pytest.approx(float(losses["mask"] + 0.1 * losses["mix"]), abs=1e-6)
    with pytest.raises(InputError, match="this avsegformer has a head of 3 classes where the benchmark needs a binary"):
        student.check("binary", ())


def test_batch_without_labels_has_a_loss_of_zero_with_gradients() -> None:
    student = make().train()
    batch = batch_of((2,), labeled=((),))
    loss = student.loss(student(batch), batch)["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss) == 0.0 and all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize("channels", [48, 0])
def test_channels_that_do_not_fit_are_refused(channels: int) -> None:
    with pytest.raises(
        InputError, match=f"'model.channels' must be a multiple of 32 and of 'model.heads', not {channels}"
    ):
        AvSegFormer(replace(SMALL, channels=channels))


# ------------------------------------------------------------------------------------------------------------- losses


def test_dice_loss_is_the_published_formula_weighted_by_frame() -> None:
    logits, masks = torch.tensor([[[[2.0, -1.0]]], [[[0.0, 3.0]]]]), torch.tensor([[[1, 0]], [[1, 1]]])
    expected = []
    for frame, true in zip(logits[:, 0, 0].tolist(), masks[:, 0].tolist(), strict=True):
        predicted = [1 / (1 + math.exp(-value)) for value in frame]
        overlap = sum(p * t for p, t in zip(predicted, true, strict=True))
        expected.append(1 - 2 * overlap / (sum(p * p for p in predicted) + sum(t * t for t in true) + 0.002))
    both = dice_loss(logits, masks, torch.ones(2))
    assert float(both) == pytest.approx(sum(expected) / 2, abs=1e-6)
    assert float(dice_loss(logits, masks, torch.tensor([1.0, 3.0]))) == pytest.approx(
        (expected[0] + 3 * expected[1]) / 4, abs=1e-6
    )


def test_mixing_loss_compares_the_mean_channel_with_the_foreground() -> None:
    torch.manual_seed(0)
    mixed, masks = torch.randn(2, 4, 2, 2), torch.randint(0, 3, (2, 8, 8))
    mean = functional.interpolate(mixed.mean(1, keepdim=True), (8, 8), mode="bilinear", align_corners=False)
    expected = dice_loss(mean, (masks > 0).long(), torch.ones(2))
    assert torch.allclose(mixing_loss(mixed, masks, torch.ones(2)), expected)
