"""TPAVI: sizes, the reordered attention, batches, initialization."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PvtV2Backbone, PvtV2Config, ResNetBackbone

from openavs.errors import InputError, ModelError
from openavs.evaluation.datasets.tables import CLASSES
from openavs.training.base import StudentBatch, take_matching
from openavs.training.inference import predict_clip
from openavs.training.models.backbones import BACKBONES
from openavs.training.models.tpavi import FrameGroups, Interaction, Residual, Tpavi, TpaviConfig

SMALL = TpaviConfig(backbone="pvt_v2_tiny", side=64, channels=16, inner=8)
SECOND_BRANCH = 22_063_104  # layer3_2 and layer4_2 of the published ResNet, unused in the forward pass


def make(config: TpaviConfig = SMALL, seed: int = 0) -> Tpavi:
    torch.manual_seed(seed)
    student = Tpavi(config)
    for interaction in student.interactions:  # at initialization the audio has no effect
        torch.nn.init.normal_(interaction.bn.weight)  # type: ignore[arg-type]
        torch.nn.init.normal_(interaction.bn.running_mean)  # type: ignore[arg-type]
    return student.eval()


def batch_of(lengths: tuple[int, ...], labeled: tuple[tuple[int, ...], ...] = (), classes: int = 2) -> StudentBatch:
    """Clips of random frames, audio features and masks."""
    random, count, size = torch.Generator().manual_seed(5), max(lengths), (64, 64)
    present = torch.tensor([[t < length for t in range(count)] for length in lengths])
    known = present.clone() if not labeled else torch.zeros_like(present)
    for row, frames in enumerate(labeled):
        known[row, list(frames)] = True
    shape = (len(lengths), count)
    frames = torch.randint(0, 256, (*shape, 3, *size), generator=random, dtype=torch.uint8)
    return StudentBatch(
        ids=tuple(f"clip{i}" for i in range(len(lengths))),
        frames=frames * present[:, :, None, None, None],
        audio=torch.rand((*shape, 128), generator=random) * present[:, :, None],
        present=present,
        masks=torch.randint(0, classes, (*shape, *size), generator=random, dtype=torch.uint8) * known[:, :, None, None],
        labeled=known,
        weight=known.float(),
        inner=(size,) * len(lengths),
        sizes=((48, 80),) * len(lengths),
    )


def short(batch: StudentBatch, clip: int) -> StudentBatch:
    """One clip alone, without its padding frames."""
    alone, length = batch.clip(clip), batch.lengths[clip]
    names = ("frames", "audio", "present", "masks", "labeled", "weight")
    return replace(alone, **{name: getattr(alone, name)[:, :length] for name in names})


# ------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("backbone", "classes", "published"),
    [
        ("resnet50", (), 91_400_961 - SECOND_BRANCH),
        ("resnet50", CLASSES, 91_402_247 - SECOND_BRANCH),
        ("pvt_v2_b5", (), 101_320_577),
        ("pvt_v2_b5", CLASSES, 101_321_863),
    ],
)
def test_numbers_of_parameters_are_the_published_ones(backbone: str, classes: tuple[str, ...], published: int) -> None:
    with torch.device("meta"):
        student = Tpavi(TpaviConfig(backbone=backbone, classes=tuple(classes)))
    assert sum(p.numel() for p in student.parameters()) == published


def test_modules_have_the_published_numbers_of_parameters() -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        student = Tpavi(TpaviConfig())
        closed = Tpavi(TpaviConfig(classes=tuple(CLASSES)))
    assert count(student.backbone) == 81_443_008
    assert [count(part) for part in student.interactions] == [165_760] * 4
    assert [count(part) for part in closed.interactions] == [165_504] * 4
    assert [count(part) for part in student.decoder.paths] == [2_360_320] * 4
    assert (count(student.decoder.head), count(closed.decoder.head)) == (331_969, 334_279)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_has_maps_at_four_strides(name: str) -> None:
    with torch.device("meta"):
        backbone = Tpavi(TpaviConfig(backbone=name)).backbone
        maps = backbone(torch.zeros(1, 3, 64, 64)).feature_maps
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // s, 64 // s) for c, s in zip(BACKBONES[name].channels, (4, 8, 16, 32), strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------- attention


def quadratic(layer: Interaction, maps: Tensor, aligned: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The explicit affinity of all pairs of pixels of a clip, (T h w) x (T h w) numbers."""
    answers, start = [], 0
    for length in lengths:
        own, sound = maps[start : start + length], aligned[start : start + length]
        start += length
        height, width = own.shape[-2:]
        spread = sound[:, :, None, None].expand(-1, -1, height, width)
        theta, phi, g = (
            layer_of(values).permute(0, 2, 3, 1).flatten(0, 2)
            for layer_of, values in ((layer.theta, own), (layer.phi, spread), (layer.g, own))
        )
        affinity = theta @ phi.T / len(theta)
        answers.append((affinity @ g).reshape(length, height, width, -1).permute(0, 3, 1, 2))
    return torch.cat(answers)


def test_attention_equals_its_quadratic_form_for_any_length() -> None:
    torch.manual_seed(3)
    layer = Interaction(channels=24, inner=12, audio=128)
    lengths = (5, 3, 10, 1)
    present = torch.tensor([[t < length for t in range(10)] for length in lengths])
    maps, aligned = 3 * torch.randn(sum(lengths), 24, 7, 6), 3 * torch.randn(sum(lengths), 24)
    expected = quadratic(layer, maps, aligned, lengths).detach()
    got = layer.attend(maps, aligned, FrameGroups.of(present)).detach()
    assert expected.abs().max() > 0.1
    assert (got - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def test_audio_has_no_effect_at_initialization() -> None:
    layer = Interaction(channels=8, inner=4, audio=128).eval()
    maps = torch.randn(2, 8, 3, 3)
    new, _ = layer(maps, torch.rand(2, 128), FrameGroups.of(torch.ones(1, 2, dtype=torch.bool)))
    expected = torch.nn.functional.layer_norm(maps.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2)
    assert torch.allclose(new, expected, atol=1e-6)


def test_skip_of_a_residual_is_positive() -> None:
    layer = Residual(4)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    maps = torch.randn(1, 4, 5, 5)
    assert torch.equal(layer(maps), maps.clamp(min=0))


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("lengths", [(5, 5), (10, 5), (1, 7)])
def test_a_batch_of_two_equals_two_batches_of_one(lengths: tuple[int, int]) -> None:
    student, batch = make(), batch_of(lengths)
    together = student.predict(batch, None)
    for clip in (0, 1):
        (alone,) = student.predict(short(batch, clip), None)
        assert together[clip].probability is not None and alone.probability is not None
        assert together[clip].probability.shape == (lengths[clip], 48, 80)
        assert np.abs(together[clip].probability - alone.probability).max() < 1e-5


def test_decoding_labeled_frames_only_gives_the_same_gradients() -> None:
    batch = batch_of((5, 3), labeled=((0,), (0, 2)))
    answers = []
    for every in (False, True):
        student = make().train()
        if every:
            student._frames_to_decode = torch.ones_like  # type: ignore[method-assign, assignment]
        output = student(batch)
        assert len(output.logits) == (8 if every else 3)
        loss = student.loss(output, batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
        answers.append((float(loss), torch.cat(gradients)))
    (loss, gradient), (expected, whole) = answers
    assert loss == pytest.approx(expected, abs=1e-6) and gradient.shape == whole.shape
    assert torch.allclose(gradient, whole, atol=1e-5)


def test_clip_can_be_processed_in_runs_of_frames() -> None:
    """With `frames=1` the mask of a frame depends on its own second only."""
    whole, student = make(), make(replace(SMALL, frames=1))
    student.load_state_dict(whole.state_dict())
    assert (student.view(training=True).frames, student.view(training=False).frames) == (1, 1)
    audio = np.random.default_rng(1).normal(size=(3, 128))
    images = [np.random.default_rng(2).integers(0, 255, (64, 64, 3), dtype=np.uint8)] * 3
    together, apart = (predict_clip(s, "c", images, audio.astype(np.float32), None) for s in (whole, student))
    assert together.probability is not None and apart.probability is not None
    assert np.abs(together.probability[0] - together.probability[1]).max() < 1e-5
    assert np.abs(apart.probability[0] - apart.probability[1]).max() > 1e-4
    with pytest.raises(InputError, match=r"'model.frames' is at least 1, not 0"):
        Tpavi(replace(SMALL, frames=0))


def test_all_frames_are_decoded_if_needed() -> None:
    batch = batch_of((5, 3), labeled=((0,), ()))
    assert len(make()(batch).logits) == 8
    assert len(make(replace(SMALL, avm=0.5)).train()(batch).logits) == 8  # AVM uses all frames
    assert len(make().train()(batch_of((5,), labeled=((),))).logits) == 5


def test_output_depends_on_the_audio_and_the_other_frames() -> None:
    student, batch = make(), batch_of((4,))
    (first,) = student.predict(batch, None)
    (deaf,) = student.predict(replace(batch, audio=batch.audio.flip(2)), None)
    frames = batch.frames.clone()
    frames[0, 3] = 255 - frames[0, 3]
    (other,) = student.predict(replace(batch, frames=frames), None)
    assert first.probability is not None and deaf.probability is not None and other.probability is not None
    assert np.abs(first.probability - deaf.probability).max() > 1e-4
    assert np.abs(first.probability[0] - other.probability[0]).max() > 1e-6  # frame 0 also attends to frame 3


def test_equal_frames_get_equal_masks_for_any_order_of_sounds() -> None:
    """The attention sums over the audio of all frames, so their order is lost: a limit of TPAVI on MS3."""
    batch, student = batch_of((5,)), make()
    alike = replace(batch, frames=batch.frames[:, :1].expand_as(batch.frames))
    logits = student(alike).logits
    assert torch.allclose(logits, logits[:1].expand_as(logits), atol=1e-5)
    silent = replace(alike, audio=torch.zeros_like(alike.audio))
    assert (student(silent).logits - logits).abs().max() > 0.001


def test_content_of_the_padding_has_no_effect() -> None:
    student, batch = make(), batch_of((2, 4))
    frames, audio = batch.frames.clone(), batch.audio.clone()
    frames[0, 2:], audio[0, 2:] = 200, 9.0
    clean, dirty = (student.predict(b, None) for b in (batch, replace(batch, frames=frames, audio=audio)))
    assert np.array_equal(clean[0].probability, dirty[0].probability)  # type: ignore[arg-type]


def test_label_map_has_the_classes_of_the_benchmark() -> None:
    names = ("background", "dog", "bell")
    student = make(replace(SMALL, classes=names))
    answers = student.predict(batch_of((3, 2), classes=3), names)
    assert [len(answer.frames) for answer in answers] == [3, 2]
    found = [one for answer in answers for frame in answer.frames for one in frame]
    assert found and {one.label for one in found} <= {"dog", "bell"}
    for frame in answers[0].frames:  # at most one class per pixel
        assert sum((one.mask.astype(int) for one in frame), np.zeros((48, 80), int)).max() <= 1


# ------------------------------------------------------------------------------------------------- where it starts from


def test_another_tpavi_initializes_all_tensors_of_equal_shape(tmp_path: Path) -> None:
    s4 = make(seed=1)
    s4.save_pretrained(tmp_path / "s4")
    ms3 = make(replace(SMALL, avm=0.5), seed=2)
    ms3.initialize("student", str(tmp_path / "s4"))
    assert all(torch.equal(a, b) for a, b in zip(ms3.state_dict().values(), s4.state_dict().values(), strict=True))
    closed = make(replace(SMALL, classes=("background", "dog", "bell")), seed=3)
    closed.initialize("student", str(tmp_path / "s4"))
    differing = {
        name
        for name, tensor in closed.state_dict().items()
        if not torch.equal(tensor, s4.state_dict().get(name, torch.zeros(0)))
    }
    assert differing == {"decoder.head.conv3.weight", "decoder.head.conv3.bias"}
    with pytest.raises(ModelError, match="no tensor of the model 'other' fits this student; start from a folder of"):
        take_matching(s4, {"decoder.head.conv3.bias": torch.zeros(9), "elsewhere": torch.zeros(1)}, "other")


def test_backbone_is_initialized_from_its_checkpoint(tmp_path: Path) -> None:
    spec = BACKBONES["pvt_v2_tiny"]
    torch.manual_seed(9)
    donor = PvtV2Backbone(PvtV2Config(**spec.options))
    donor.save_pretrained(tmp_path / "pvt")
    student = make()
    student.initialize("backbone", str(tmp_path / "pvt"))
    assert all(torch.equal(p, donor.state_dict()[name]) for name, p in student.backbone.state_dict().items())
    with pytest.raises(ModelError, match="ResNetBackbone"):
        make(replace(SMALL, backbone="resnet_tiny")).initialize("backbone", str(tmp_path / "pvt"))
    assert isinstance(make(replace(SMALL, backbone="resnet_tiny")).backbone, ResNetBackbone)


def test_benchmark_that_does_not_fit_the_head_is_refused() -> None:
    with pytest.raises(InputError, match="has a binary head where the benchmark needs one of its 71 classes"):
        make().check("semantic", CLASSES)
    with pytest.raises(InputError, match="has a head of 2 classes where the benchmark needs a binary one"):
        make(replace(SMALL, classes=("background", "dog"))).check("binary", ())
    with pytest.raises(InputError, match="names the background and at least one class, or nothing for binary masks"):
        make(replace(SMALL, classes=("background",)))
    with pytest.raises(InputError, match="must be a multiple of 32, not 100"):
        make(replace(SMALL, side=100))
    with pytest.raises(InputError, match="there is no backbone 'pvt_v2_b6'; did you mean"):
        make(replace(SMALL, backbone="pvt_v2_b6"))
