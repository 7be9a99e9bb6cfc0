"""The localizer: size, independence of the batch, initialization from Mask2Former."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from openavs.errors import InputError, ModelError
from openavs.models.hub import resolve
from openavs.training.models.ov_avss import decoder
from openavs.training.models.ov_avss.config import OvAvssConfig, OvAvssStudentConfig
from openavs.training.models.ov_avss.decoder import DecoderMemory, EarlyFusion, interpolate_positions, sine_3d
from openavs.training.models.ov_avss.network import OvAvssNetwork, from_mask2former, is_new
from tests.training.ov_avss_models import inputs, mask2former_options, tiny_network


@pytest.mark.parametrize(("backbone", "millions"), [("resnet50", 48.19), ("swin_base", 111.07)])
def test_number_of_parameters_is_the_published_one(backbone: str, millions: float) -> None:
    with torch.device("meta"):
        network = OvAvssNetwork(OvAvssStudentConfig(backbone=backbone).network())
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions
    fusion = network.model.pixel_level_module.decoder.audio_fusion
    assert sum(p.numel() for p in fusion.parameters()) == 1_185_280


def test_initialization_of_inherited_and_new_parameters() -> None:
    torch.manual_seed(0)
    own = OvAvssNetwork(OvAvssConfig(**mask2former_options())).state_dict()
    stock = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**mask2former_options())).state_dict()
    shared = {name for name in own.keys() & stock.keys() if own[name].is_floating_point() and own[name].numel() > 99}
    assert len(shared) > 50
    for name in shared:
        assert float(own[name].std()) == pytest.approx(float(stock[name].std()), rel=0.2, abs=1e-6), name
    offsets = "model.pixel_level_module.decoder.encoder.layers.0.self_attn.sampling_offsets.bias"
    assert torch.equal(own[offsets], stock[offsets]) and own[offsets].abs().max() >= 1, "points look around at first"
    for layer in ("model.transformer_module.audio_projection.0", "sound_predictor"):  # as torch draws a linear layer
        bound = own[f"{layer}.weight"].shape[1] ** -0.5
        assert 0.5 * bound < own[f"{layer}.weight"].abs().max() <= bound
        assert 0 < own[f"{layer}.bias"].abs().max() <= bound


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
@pytest.mark.parametrize("frames", [1, 3, 5, 10])
def test_any_number_of_frames(backbone: str, frames: int) -> None:
    answers = tiny_network(backbone)(*inputs(1, frames))[0]
    assert len(answers) == 4  # before the first of three layers and after each
    assert answers[-1].objectness.shape == (6, 2)
    assert answers[-1].masks.shape == (6, frames, 16, 24)


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_batch_of_two_equals_two_batches_of_one(backbone: str) -> None:
    network, (frames, sound) = tiny_network(backbone), inputs(2)
    together = network(frames, sound)
    for clip in range(2):
        alone = network(frames[clip : clip + 1], sound[clip : clip + 1])[0]
        for mine, other in zip(together[clip], alone, strict=True):
            torch.testing.assert_close(mine.masks, other.masks, rtol=1e-4, atol=1e-4 * other.masks.abs().max().item())
            torch.testing.assert_close(mine.objectness, other.objectness, rtol=1e-4, atol=1e-4)
    assert (together[0][-1].masks - together[1][-1].masks).abs().max() > 0.1


def test_fusion_pairs_each_frame_with_its_audio() -> None:
    network, (frames, sound) = tiny_network(), inputs(1, 4)
    order = [2, 0, 3, 1]
    fused = network.model.pixel_level_module(frames[0], sound[0])
    shuffled = network.model.pixel_level_module(frames[0, order], sound[0, order])
    torch.testing.assert_close(shuffled.masks, fused.masks[order], rtol=1e-4, atol=1e-4)
    other = network.model.pixel_level_module(frames[0], sound[0, order])
    assert (other.masks - fused.masks).abs().max() > 1e-3


def test_output_depends_on_the_audio() -> None:
    network, (frames, sound) = tiny_network(), inputs()
    first, other = network(frames, sound)[0][-1], network(frames, sound.flip(1))[0][-1]
    assert (first.objectness - other.objectness).abs().max() > 1e-3


def test_fusion_equals_the_published_equations() -> None:
    torch.manual_seed(0)
    fusion = EarlyFusion(8, 6, 16, 4, 0.0).eval()
    pixels, sound = torch.randn(2, 5, 8), torch.randn(2, 3, 6)
    seen, attended = fusion(pixels, sound)
    v, a = fusion.visual_norm(pixels), fusion.audio_norm(sound)
    dv, da = torch.zeros(2, 5, 16), torch.zeros(2, 3, 16)
    for head in range(4):
        own = slice(4 * head, 4 * head + 4)
        q, k = fusion.visual_query(v)[..., own] / 2.0, fusion.audio_key(a)[..., own]
        scores = torch.einsum("nsc,nkc->nsk", q, k)
        dv[..., own] = scores.softmax(2) @ fusion.audio_value(a)[..., own]
        da[..., own] = scores.softmax(1).transpose(1, 2) @ fusion.visual_value(v)[..., own]
    torch.testing.assert_close(seen, v + fusion.visual_out(dv) / 6)
    torch.testing.assert_close(attended, a + fusion.audio_out(da) / 6)


def test_one_audio_token_shifts_all_pixels_of_a_frame_equally() -> None:
    torch.manual_seed(0)
    fusion = EarlyFusion(8, 6, 16, 4, 0.0).eval()
    pixels = torch.randn(1, 5, 8)
    update = fusion(pixels, torch.randn(1, 1, 6))[0] - fusion.visual_norm(pixels)
    torch.testing.assert_close(update, update[:, :1].expand_as(update))


def test_positions_encode_frames_rows_and_columns() -> None:
    code = sine_3d((2, 3, 4), torch.zeros(1, 8)).view(2, 3, 4, 8)
    turn = 2 * torch.pi
    for t, y, x in [(0, 0, 0), (1, 2, 1)]:
        plane = []
        for place, length in ((y, 3), (x, 4)):
            angle = (place + 1) / length * turn
            plane += [f(torch.tensor(angle / 10_000 ** (i / 4))) for i in (0, 2) for f in (torch.sin, torch.cos)]
        angle = (t + 1) / 2 * turn
        time = [f(torch.tensor(angle / 10_000 ** (i / 8))) for i in (0, 2, 4, 6) for f in (torch.sin, torch.cos)]
        torch.testing.assert_close(code[t, y, x], torch.stack(plane) + torch.stack(time), rtol=1e-4, atol=1e-4)


def test_learned_positions_are_interpolated_for_any_length() -> None:
    table = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]])
    assert interpolate_positions(table, 5) is table
    assert interpolate_positions(table, 3)[:, 0].tolist() == [0.0, 2.0, 4.0]
    assert interpolate_positions(table, 9)[:, 0].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_mask2former_checkpoint_initializes_the_network(tmp_path: Path, backbone: str) -> None:
    torch.manual_seed(3)
    donor = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**mask2former_options(backbone), num_labels=7))
    donor.save_pretrained(tmp_path)
    network = from_mask2former(resolve(str(tmp_path)))
    given, own = donor.state_dict(), network.state_dict()
    unexpected = set(given) - set(own)
    assert unexpected == {"class_predictor.weight", "class_predictor.bias", "criterion.empty_weight"}
    missing = set(own) - set(given)
    assert missing and all(is_new(name) for name in missing)
    assert not any(is_new(name) for name in given)
    for name in set(own) & set(given):
        assert torch.equal(own[name], given[name]), name


def test_the_head_of_a_checkpoint_of_one_class_is_the_first_sound_predictor(tmp_path: Path) -> None:
    donor = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**mask2former_options(), num_labels=1))
    donor.save_pretrained(tmp_path)
    network = from_mask2former(resolve(str(tmp_path)))
    assert torch.equal(network.sound_predictor.weight, donor.class_predictor.weight)
    assert torch.equal(network.sound_predictor.bias, donor.class_predictor.bias)


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    tiny_network().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="Mask2FormerForUniversalSegmentation"):
        from_mask2former(resolve(str(tmp_path)))


def test_without_audio_and_time_it_equals_mask2former(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the new modules set to identity, the inherited modules compute the same as transformers."""
    network, (frames, sound) = tiny_network(), inputs(2, 1)
    stock = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**mask2former_options())).eval()
    stock.load_state_dict(network.state_dict(), strict=False)
    expected = stock.model(frames[:, 0])
    transformer = network.model.transformer_module
    network.model.pixel_level_module.decoder.audio_fusion = _Fusion()
    transformer.query_audio_attention = _Attention()
    for layer in transformer.decoder.layers:
        layer.audio_attention = _Attention()
    time = decoder._sines(1, 32, frames.device)  # one frame adds the same to all
    monkeypatch.setattr(decoder, "sine_3d", lambda size, tokens: sine_3d(size, tokens) - time)
    answers = network(frames, sound)
    for layer, masks in enumerate(expected.masks_queries_logits):
        got = torch.stack([clip[layer].masks[:, 0] for clip in answers])
        torch.testing.assert_close(got, masks, rtol=1e-3, atol=1e-3 * masks.abs().max().item())


class _Fusion(torch.nn.Module):
    def forward(self, pixels: torch.Tensor, sound: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pixels, sound


class _Attention(torch.nn.Module):
    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, sound: DecoderMemory) -> torch.Tensor:
        return tokens


def test_batch_norms_stay_frozen_in_training() -> None:
    network, (frames, sound) = tiny_network(), inputs()
    before = {name: buffer.clone() for name, buffer in network.named_buffers() if "running" in name}
    network.train()
    network(frames, sound)
    assert before and all(torch.equal(network.get_buffer(name), value) for name, value in before.items())
    thawed = tiny_network(freeze_batch_norm=False).train()
    thawed(frames, sound)
    assert not all(torch.equal(thawed.get_buffer(name), value) for name, value in before.items())


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_every_trained_parameter_has_a_gradient(backbone: str) -> None:
    network = tiny_network(backbone).train()
    answers = network(*inputs())[0]
    torch.stack(
        [answer.masks.square().mean() + answer.objectness.square().mean() for answer in answers]
    ).sum().backward()
    assert [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_shapes_that_do_not_match_are_refused_in_one_line() -> None:
    network, (frames, sound) = tiny_network(), inputs()
    with pytest.raises(InputError, match="shorter than the frames"):
        network(frames, sound[:, :3])
    with pytest.raises(InputError, match="multiples of 32"):
        network(frames[..., :50], sound)
