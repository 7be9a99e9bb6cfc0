"""The embedded PE-A-Frame: loading by transformers, its training data, and times on held-out soundtracks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PeAudioFrameLevelModel, PeAudioProcessor

import openavs
from eval.experiments import event_times
from openavs.synthetic.audio import RATE, sound_of
from openavs.synthetic.categories import KINDS
from scripts.train_tiny import audio_data, clap, event_data, pe_a_frame

HOME = Path(openavs.__file__).parent / "assets" / "tiny" / "pe-a-frame"


@pytest.fixture(scope="module")
def model() -> Any:
    return PeAudioFrameLevelModel.from_pretrained(HOME, dtype=torch.float32).eval()


def test_files_are_small_and_contain_no_pickle() -> None:
    names = {path.name for path in HOME.iterdir()}
    assert "model.safetensors" in names and not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert sum(path.stat().st_size for path in HOME.iterdir()) < 2e6


def test_its_processor_has_25_frames_a_second_and_the_words_of_the_captions() -> None:
    processor: Any = PeAudioProcessor.from_pretrained(HOME)
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    assert extractor.sampling_rate / extractor.hop_length == 25
    for kind in range(len(KINDS)):
        for caption in clap.captions_of(kind):
            assert tokenizer.unk_token_id not in tokenizer(caption)["input_ids"]


def test_the_fast_encoder_of_the_training_equals_that_of_the_library(model: Any) -> None:
    """Snake activations that are neutral up to a thousandth are left out in training."""
    samples = torch.from_numpy(np.stack([sound_of(kind, 2.0, np.random.default_rng(5)) for kind in ("dog", "violin")]))
    with torch.inference_mode():
        fast = pe_a_frame.encode(model, samples)
        exact = model.get_audio_embeds(samples[:, None], torch.ones_like(samples))
    assert (fast - exact).abs().max() < 0.05 * exact.abs().max()


def test_targets_are_the_shares_of_frames_that_events_cover_or_the_frames_that_sound() -> None:
    sound = np.zeros(RATE, dtype=np.float32)
    sound[round(0.22 * RATE) : round(0.5 * RATE)] = 0.1
    expected = np.zeros(25)
    expected[5], expected[6:12], expected[12] = 0.5, 1.0, 0.5  # 0.22 and 0.5 s are in the middle of frames of 40 ms
    assert event_data.event_frames(sound) == pytest.approx(expected)
    assert event_data.sounding_frames(sound) == pytest.approx(np.ceil(expected))
    sound[round(0.3 * RATE) : round(0.42 * RATE)] = 0.0  # a pause, which does not end the event
    assert event_data.event_frames(sound) == pytest.approx(expected)
    assert event_data.sounding_frames(sound)[5:13].tolist() == [1, 1, 1, 0, 0, 1, 1, 1]


def test_training_soundtracks_have_targets_for_their_sources_only() -> None:
    pool = event_data.TrackPool(1, 2.0, audio_data.TRAIN, 0)
    for index in range(5):
        track = event_data.sample_track(pool, audio_data.generator(audio_data.TRAIN, 1, index), 3, (0.0, 1.0))
        assert track.samples.shape == (3 * RATE,) and track.events.shape == track.sounding.shape == (len(KINDS), 75)
        assert (track.sounding.max(axis=1) > 0).sum() == 2


def test_joint_sources_start_and_stop_together_and_may_sound_twice() -> None:
    pool = event_data.TrackPool(1, 2.0, audio_data.TRAIN, 0)
    starts, longest = set(), 0
    for index in range(8):
        rng = audio_data.generator(audio_data.TRAIN, 1, index)
        runs = list(event_data._joint_runs(3, 5 * RATE, 5 * RATE, rng))
        edges = {edge for own in runs for run in own for edge in run} - {0, 5 * RATE}
        assert len(runs) == 3 and all(runs) and len(edges) <= 3  # common times, not one per source
        starts |= edges
        longest = max(longest, *map(len, runs))
    assert longest == 2 and len(starts) > 8
    track = event_data.sample_track(pool, audio_data.generator(audio_data.TRAIN, 1, 0), 3, (0.0, 1.0), joint=True)
    assert (track.sounding.max(axis=1) > 0).sum() == 2


def test_frames_around_starts_and_ends_count_more() -> None:
    targets = torch.zeros(1, 1, 40)
    targets[..., 20:] = 1.0  # to the end of the track
    expected = torch.zeros(40)
    expected[14:26] = expected[34:] = 1.0
    assert torch.equal(pe_a_frame.near_edges(targets)[0, 0], expected)


@pytest.mark.slow
def test_training_is_reproducible() -> None:
    tokenizer = clap.build_tokenizer()

    def trained(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = pe_a_frame.build_model(tokenizer)
        pe_a_frame.train(model, tokenizer, steps=6, batch=2, rate=1e-3, seed=seed, clips=1, pauses=True)
        assert not model.training
        figures = pe_a_frame.evaluate(model, tokenizer, split=audio_data.VAL, count=2)
        assert all(0 <= share <= 1 for share in figures.values())
        return [weight.detach() for weight in model.parameters()]

    first = trained(1)
    assert all(torch.equal(a, b) for a, b in zip(first, trained(1), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, trained(2), strict=True))


def test_times_on_held_out_soundtracks() -> None:
    """Limits below the scores that docs/tiny.md states for more clips."""
    captioner = event_times.make_captioner(event_times.MODEL, [])
    figures = event_times.measure(captioner, "ms3", "val", seed=7, clips=15)
    assert figures["frame_f"].value >= 0.9 and figures["within"].value >= 0.6, figures
