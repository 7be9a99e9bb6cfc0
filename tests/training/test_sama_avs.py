"""SAMA-AVS: the equations of the paper, parameter counts, frozen weights, checkpoints, losses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import SamConfig, SamModel

from openavs.errors import InputError, ModelError
from openavs.models.hub import load_pretrained, resolve
from openavs.training.base import Student, load_student
from openavs.training.models.sama_avs import AudioAdapters, PromptFreeDecoder, SamaAvs, iou_loss
from tests.training.test_tpavi import batch_of, short

SAM = "openavs:tiny/sam"
SETTINGS = {"backbone": SAM, "side": 128, "adapter": 16}


def make(seed: int = 0, **settings: Any) -> SamaAvs:
    torch.manual_seed(seed)
    return SamaAvs.build(SETTINGS | settings, offline=True)


def library() -> Any:
    return load_pretrained(SamModel, resolve(SAM), torch.float32, "cpu")


def batch(*arguments: Any, **options: Any) -> Any:
    """Clips whose frames have the side of the SAM."""
    made = batch_of(*arguments, **options)
    frames = functional.interpolate(made.frames.flatten(0, 1).float(), (128, 128)).to(torch.uint8)
    masks = functional.interpolate(made.masks.float(), (128, 128)).to(torch.uint8)
    shape = made.frames.shape[:3]
    sides = ((128, 128),) * shape[0]
    return replace(made, frames=frames.reshape(*shape, 128, 128), masks=masks, inner=sides)


# --------------------------------------------------------------------------------------------------------- equations


def test_numbers_of_trained_parameters_are_the_published_ones() -> None:
    """Those of SAM ViT-H, counted in the published code; it has 552,036 more, of outputs that it does not use."""
    config = SamConfig()
    vision = config.vision_config
    vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads = 1280, 32, 16
    with torch.device("meta"):
        adapters = AudioAdapters(32, 512, 1280)
        decoder = PromptFreeDecoder(SamModel(config), classes=0)
    assert sum(p.numel() for p in adapters.parameters()) == 2_770_176
    assert sum(p.numel() for p in decoder.parameters()) == 4_058_596 - 552_036


def test_adapters_add_a_vector_of_the_audio_to_all_cells_before_each_layer() -> None:
    """`x_j = layer_j(x_(j-1) + shared(gelu(own_j(audio))))` with the layers of the library."""
    student, sam = make(), library()
    pixels, audio = torch.randn(2, 3, 128, 128), torch.rand(2, 128)
    cells = sam.vision_encoder.patch_embed(pixels) + sam.vision_encoder.pos_embed
    for own, layer in zip(student.adapters.layers, sam.vision_encoder.layers, strict=True):
        vector = student.adapters.shared(functional.gelu(own(audio)))
        cells = layer(cells + vector[:, None, None, :])
    expected = sam.vision_encoder.neck(cells)
    made = student.backbone(pixels, student.adapters(audio))
    assert torch.allclose(made, expected, atol=1e-4) and float(expected.detach().abs().max()) > 1


def test_decoder_without_prompts_is_that_of_the_library() -> None:
    student, sam = make(), library()
    embedding = torch.randn(2, 96, 16, 16)
    expected = sam(image_embeddings=embedding, multimask_output=False).pred_masks[:, 0]
    assert torch.allclose(student.decoder(embedding), expected, atol=1e-4) and expected.shape == (2, 1, 64, 64)


def test_losses_are_the_cross_entropy_and_one_minus_the_soft_iou() -> None:
    logits, masks = torch.tensor([[[[2.0, -1.0]]], [[[0.0, 3.0]]]]), torch.tensor([[[1, 0]], [[1, 1]]])
    expected = []
    for frame, true in zip(logits[:, 0, 0].tolist(), masks[:, 0].tolist(), strict=True):
        predicted = [1 / (1 + math.exp(-value)) for value in frame]
        overlap = sum(p * t for p, t in zip(predicted, true, strict=True))
        expected.append(1 - overlap / (sum(predicted) + sum(true) - overlap))
    assert float(iou_loss(logits, masks, torch.ones(2))) == pytest.approx(sum(expected) / 2, abs=1e-6)
    weighted = float(iou_loss(logits, masks, torch.tensor([1.0, 3.0])))
    assert weighted == pytest.approx((expected[0] + 3 * expected[1]) / 4, abs=1e-6)
    student, clips = make(), batch((3,))
    losses = student.loss(student(clips), clips)
    entropy = functional.binary_cross_entropy_with_logits(
        student(clips).logits[:, 0], clips.masks[clips.labeled].float()
    )
    assert losses["mask"].item() == pytest.approx(entropy.item(), abs=1e-5)
    assert losses["loss"].item() == pytest.approx((losses["mask"] + losses["iou"]).item(), abs=1e-6)


# ----------------------------------------------------------------------------------------------------------- training


def test_adapters_and_decoder_learn_and_the_encoder_does_not_change() -> None:
    student, clips = make().train(), batch((2, 2))
    clips = replace(clips, masks=(clips.frames[:, :, 0] > 128).to(torch.uint8))
    assert not any(p.requires_grad for p in student.backbone.parameters())
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(12):
        losses.append(float(student.loss(student(clips), clips)["loss"].detach()))
        student.loss(student(clips), clips)["loss"].backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    changed = {name.split(".")[0] for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"adapters", "decoder"}


@pytest.mark.parametrize("recompute", [False, True])
def test_labeled_frames_alone_and_recomputed_layers_give_the_same_gradients(recompute: bool) -> None:
    clips = batch((5, 3), labeled=((0,), (0, 2)))
    answers = []
    for every in (False, True):
        student = make(recompute=recompute and not every).train()
        output = student(replace(clips, labeled=clips.present) if every else clips)
        assert len(output.logits) == (8 if every else 3)
        student.loss(output, clips)["loss"].backward()  # type: ignore[no-untyped-call]
        answers.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    assert torch.allclose(*answers, atol=1e-5) and answers[0].abs().max() > 1e-3


def test_frames_do_not_depend_on_each_other_and_the_audio_changes_the_masks() -> None:
    student, clips = make().eval(), batch((3, 2))
    together = student.predict(clips, None)
    (alone,) = student.predict(short(clips, 1), None)
    assert together[1].probability is not None and alone.probability is not None
    assert np.abs(together[1].probability - alone.probability).max() < 1e-5
    other = student(replace(clips, audio=5 * clips.audio.flip(2))).logits
    assert (other - student(clips).logits).abs().max() > 1e-4


def test_classes_have_tokens_of_their_own() -> None:
    names = ("background", "dog", "bell")
    student, clips = make(classes=names), batch((3,), classes=3)
    output = student(clips)
    assert output.logits.shape == (3, 3, 128, 128)
    losses = student.loss(output, clips)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    entropy = functional.cross_entropy(output.logits, clips.masks[clips.labeled].long())
    assert float(losses["loss"].detach()) == pytest.approx(float(entropy.detach()), abs=1e-5)
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    (answer,) = student.predict(clips, names)
    assert {one.label for frame in answer.frames for one in frame} <= {"dog", "bell"}
    with pytest.raises(InputError, match="this sama-avs has a head of 3 classes where the benchmark needs a binary"):
        student.check("binary", ())


def test_batch_without_labels_has_a_loss_of_zero_with_gradients() -> None:
    student, clips = make().train(), batch((1,), labeled=((),))
    loss = student.loss(student(clips), clips)["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0 and all(p.grad is not None for p in student.parameters() if p.requires_grad)


# -------------------------------------------------------------------------------------------------------- checkpoints


def test_checkpoint_holds_what_trains_and_the_hash_of_the_encoder(tmp_path: Path) -> None:
    student = make(seed=3).eval()
    student.save_pretrained(tmp_path / "saved")
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert set(student.state_dict()) == trained | {"backbone._extra_state"}
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size < 1_500_000  # the SAM alone has 2.6 MB
    loaded, clips = load_student(str(tmp_path / "saved"), offline=True), batch((2,))
    assert torch.equal(loaded(clips).logits, student(clips).logits)


def test_checkpoint_of_another_sam_is_refused(tmp_path: Path) -> None:
    other = library()
    with torch.no_grad():
        other.vision_encoder.neck.conv1.weight[0, 0] += 0.01
    other.save_pretrained(tmp_path / "sam")
    make(backbone=str(tmp_path / "sam")).save_pretrained(tmp_path / "saved")
    load_student(str(tmp_path / "saved"))
    library().save_pretrained(tmp_path / "sam")
    with pytest.raises(ModelError, match=r"was trained with another SAM than '.*sam', whose encoder it needs"):
        load_student(str(tmp_path / "saved"))
    with pytest.raises(ModelError, match="was trained with another SAM than"):
        make().initialize("student", str(tmp_path / "saved"))


def test_folder_of_another_student_is_refused(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    from openavs.training.models.tpavi import Tpavi

    with pytest.raises(ModelError, match="is a student 'sama-avs', not 'tpavi'; give a folder of that kind"):
        Tpavi.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="the student 'sama-avs' has no part 'backbone' to start from"):
        make().initialize("backbone", SAM)


def test_side_is_that_of_the_sam_and_the_backbone_is_one() -> None:
    with pytest.raises(InputError, match=r"'model\.side' is the side of the SAM's input, 128 for .*sam, not 96"):
        make(side=96)
    with pytest.raises(ModelError, match="openavs:tiny/clip"):
        make(backbone="openavs:tiny/clip")


def test_student_knows_offline_before_it_loads_its_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        "openavs.training.models.sama_avs.resolve", lambda ref, offline: asked.append(offline) or resolve(ref)
    )
    make()
    assert asked == [True] and issubclass(SamaAvs, Student)
