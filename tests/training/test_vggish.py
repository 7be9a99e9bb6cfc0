"""VGGish: log-mel examples compared with independent references, the network and its files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank, spectrogram

from openavs.errors import InputError, ModelError
from openavs.media.encode import write_video
from openavs.media.log_mel import examples, log_mel
from openavs.models.convert import convert
from openavs.structures.types import Waveform
from openavs.training.audio_features import FeatureCache, features_of
from openavs.training.models.backbones import Vggish, VggishConfig, fingerprint, load_vggish


def sound(seconds: float, seed: int = 0, rate: int = 16_000) -> Waveform:
    return Waveform(np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32), rate)


def test_spectrogram_equals_another_implementation() -> None:
    wave = sound(1.3).samples
    bank = mel_filter_bank(
        *(257, 64, 125.0, 7500.0, 16_000), norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    bank[0] = 0.0
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    mel = spectrogram(
        wave.astype(np.float64), hann, 400, 160, fft_length=512, power=1.0, center=False, mel_filters=bank, mel_floor=0
    )
    assert np.abs(log_mel(wave) - np.log(mel.T + 0.01)).max() < 1e-5


def test_one_frame_equals_explicit_sums() -> None:
    wave = sound(0.025).samples
    expected = []
    for band in range(64):
        total = 0.0
        edges = [1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7500 / 700)]
        low, center, high = (edges[0] + (edges[1] - edges[0]) * (band + k) / 65 for k in range(3))
        for bin in range(1, 257):
            mel = 1127 * np.log(1 + bin * 16_000 / 512 / 700)
            weight = max(0.0, min((mel - low) / (center - low), (high - mel) / (high - center)))
            if weight:
                terms = [
                    wave[n] * (0.5 - 0.5 * np.cos(2 * np.pi * n / 400)) * np.exp(-2j * np.pi * bin * n / 512)
                    for n in range(400)
                ]
                total += weight * abs(sum(terms))
        expected.append(np.log(total + 0.01))
    assert np.allclose(log_mel(wave)[0], expected, atol=1e-5)


@pytest.mark.parametrize(("seconds", "frames", "count"), [(5, 498, 5), (10, 998, 10), (4.9, 488, 5), (0.9, 88, 0)])
def test_examples_do_not_overlap_and_the_rest_is_dropped(seconds: float, frames: int, count: int) -> None:
    wave = sound(seconds)
    assert log_mel(wave.samples).shape == (frames, 64)
    cut = examples(wave)
    assert cut.shape == (count, 96, 64)
    for i in range(count):
        assert np.array_equal(cut[i], log_mel(wave.samples)[96 * i : 96 * i + 96])


def test_audio_shorter_than_a_window_has_no_spectrum() -> None:
    assert log_mel(sound(399 / 16_000).samples).shape == (0, 64)
    assert log_mel(sound(400 / 16_000).samples).shape == (1, 64)


def test_silence_is_the_logarithm_of_the_offset() -> None:
    assert np.allclose(log_mel(np.zeros(16_000, dtype=np.float32)), np.log(0.01))


def test_full_size_has_the_published_names_and_parameters() -> None:
    with torch.device("meta"):
        network = Vggish()
    assert sum(p.numel() for p in network.parameters()) == 72_141_184
    layers = [f"features.{i}" for i in (0, 3, 6, 8, 11, 13)] + [f"embeddings.{i}" for i in (0, 2, 4)]
    assert list(network.state_dict()) == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def test_network_equals_a_direct_implementation() -> None:
    torch.manual_seed(1)
    network = Vggish(VggishConfig(width=2, hidden=8)).eval()
    weights = network.state_dict()
    log_mel = torch.randn(3, 96, 64)
    maps = log_mel[:, None]
    for layer, pooled in ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True)):
        maps = functional.conv2d(
            maps, weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"], padding=1
        )
        maps = functional.max_pool2d(maps.relu(), 2) if pooled else maps.relu()
    flat = torch.stack([torch.stack([m[:, y, x] for y in range(6) for x in range(4)]).flatten() for m in maps])
    for layer in (0, 2, 4):
        flat = (flat @ weights[f"embeddings.{layer}.weight"].T + weights[f"embeddings.{layer}.bias"]).relu()
    with torch.no_grad():
        assert torch.allclose(network(log_mel), flat, atol=1e-6)


def test_published_checkpoint_is_converted(tmp_path: Path) -> None:
    network = Vggish(VggishConfig(width=2, hidden=8))
    torch.save(network.state_dict(), tmp_path / "vggish.pth")
    convert(tmp_path / "vggish.pth", tmp_path / "folder")
    extractor = load_vggish(str(tmp_path / "folder"))
    assert extractor.fingerprint == fingerprint(network.state_dict())
    assert extractor(sound(2)).shape == (2, 128)


def test_another_model_and_a_pickle_are_refused(vggish: Path, tmp_path: Path) -> None:
    save_file(load_file(vggish / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clap"}))
    with pytest.raises(ModelError, match="is a 'clap' model, not a 'vggish' one"):
        load_vggish(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vggish", "width": -4}))
    with pytest.raises(ModelError, match="has a size that is not a positive integer"):
        load_vggish(str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "model.pth")
    with pytest.raises(ModelError, match="pickle weights only"):
        load_vggish(str(tmp_path))


def test_short_audio_is_refused_or_its_end_is_repeated(vggish: Path, caplog: pytest.LogCaptureFixture) -> None:
    extractor = load_vggish(str(vggish))
    with pytest.raises(InputError, match=r"the audio of clip7 lasts 0\.50 s, and one feature needs 0\.975 s"):
        features_of(extractor, sound(0.5), 5, "clip7")
    log_mel = features_of(extractor, sound(3), 5, "clip8")
    assert log_mel.shape == (5, 128)
    assert np.array_equal(log_mel[3], log_mel[2]) and np.array_equal(log_mel[4], log_mel[2])
    assert "the audio of clip8 lasts 3.00 s, too short for its 5 frames: its end is repeated" in caplog.text


def test_features_are_cached_per_vggish(s4: Path, vggish: Path, tmp_path: Path) -> None:
    from openavs.evaluation.benchmark import open_dataset

    clip = open_dataset("s4", s4, "val").clips[0]
    extractor = load_vggish(str(vggish))
    first = FeatureCache(extractor, tmp_path).of(clip)
    with torch.no_grad():
        extractor.network.embeddings[4].bias.add_(1.0)  # type: ignore[union-attr,operator]
    assert np.array_equal(FeatureCache(extractor, tmp_path).of(clip), first)  # read from the disk
    (kept,) = (tmp_path / extractor.fingerprint).iterdir()
    kept.write_bytes(b"broken")
    assert not np.array_equal(FeatureCache(extractor, tmp_path).of(clip), first)  # a damaged file is computed again


def test_error_names_a_file_without_audio_or_a_missing_file(s4: Path, vggish: Path, tmp_path: Path) -> None:
    from openavs.evaluation.benchmark import open_dataset

    cache = FeatureCache(load_vggish(str(vggish)))
    mute = replace(open_dataset("s4", s4, "val").clips[0], audio=tmp_path / "mute.mp4")
    with pytest.raises(InputError, match=r"cannot read the audio .*mute\.mp4: No such file"):
        cache.of(mute)
    write_video(mute.audio, [np.zeros((32, 32, 3), dtype=np.uint8)] * 4, 4.0)
    with pytest.raises(InputError, match=r"mute\.mp4 has no audio that can be decoded"):
        cache.of(mute)
