"""The embedded CLAP: loading by transformers, and quality on held-out sounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ClapModel, ClapProcessor

import openavs
from openavs.synthetic.audio import RATE, mix, sound_of
from openavs.synthetic.categories import KINDS
from scripts.train_tiny import audio_data, clap

THRESHOLD = 0.18  # of the recipe `tiny`
HOME = Path(openavs.__file__).parent / "assets" / "tiny" / "clap"


@pytest.fixture(scope="module")
def processor() -> Any:
    return ClapProcessor.from_pretrained(HOME)


@pytest.fixture(scope="module")
def model() -> Any:
    return ClapModel.from_pretrained(HOME).eval()


def scores(model: Any, processor: Any, sound: np.ndarray, texts: list[str]) -> np.ndarray:
    inputs = processor(text=texts, audio=[sound], sampling_rate=RATE, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs).logits_per_audio.softmax(dim=-1)[0].numpy()


def test_files_are_small_and_contain_no_pickle() -> None:
    names = {path.name for path in HOME.iterdir()}
    assert "model.safetensors" in names and not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert sum(path.stat().st_size for path in HOME.iterdir()) < 5e6


def test_training_features_equal_the_feature_extractor(processor: Any) -> None:
    sounds = np.stack([sound_of(kind, 1.0, np.random.default_rng(5)) for kind in ("dog", "violin", "clock")])
    expected = processor.feature_extractor(list(sounds), sampling_rate=RATE, return_tensors="pt")["input_features"]
    actual = audio_data.BatchedLogMel(processor.feature_extractor)(sounds)
    torch.testing.assert_close(actual, expected.float(), atol=0.05, rtol=0)


def test_tokenizer_has_exactly_the_words_of_the_captions(processor: Any) -> None:
    tokenizer = processor.tokenizer
    for kind in range(len(KINDS)):
        for caption in clap.captions_of(kind):
            assert tokenizer.unk_token_id not in tokenizer(clap.TEMPLATE.format(caption.upper()))["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("theremin")["input_ids"]


def test_scores_of_one_window_by_the_processor(model: Any, processor: Any) -> None:
    """Audio and texts to scores, by the processor and the model."""
    texts = [f"This is a sound of {what}." for what in ("dog barking", "church bell tolling", "train horn")]
    dog, bell = (sound_of(kind, 1.0, np.random.default_rng(11)) for kind in ("dog", "bell"))
    assert scores(model, processor, dog, texts)[0] > 0.8
    assert scores(model, processor, bell, texts)[1] > 0.8
    both = scores(model, processor, mix([dog, bell]), texts)
    assert min(both[0], both[1]) > THRESHOLD > both[2]


def test_quality_on_held_out_seeds(model: Any, processor: Any) -> None:
    figures = clap.evaluate(model, processor.tokenizer, split=audio_data.TEST, count=150, threshold=THRESHOLD)
    assert figures["single_top1"] >= 0.97
    assert figures["pair_found"] >= 0.88
    assert figures["pair_false"] <= 0.10
    assert figures["single_false"] <= 0.05


@pytest.mark.parametrize("variant", range(4))
def test_every_caption_of_a_sound_is_recognized(model: Any, processor: Any, variant: int) -> None:
    """Single sounds are recognized with the canonical caption, another one, or the name."""
    texts = [clap.TEMPLATE.format(clap.captions_of(kind)[variant]) for kind in range(len(KINDS))]
    windows = [audio_data.evaluation_window(audio_data.TEST, 1, index, 1) for index in range(60)]
    features = audio_data.BatchedLogMel(processor.feature_extractor)(np.stack([window.samples for window in windows]))
    with torch.inference_mode():
        audio = model.get_audio_features(features).pooler_output
        best = (audio @ clap.embed_texts(model, processor.tokenizer, texts).T).argmax(dim=-1)
    assert np.mean([window.kinds == (int(kind),) for window, kind in zip(windows, best, strict=True)]) >= 0.95


def test_training_is_reproducible() -> None:
    def weights() -> torch.Tensor:
        torch.manual_seed(0)
        tokenizer = clap.build_tokenizer()
        small = clap.build_model(len(tokenizer))
        clap.train(small, tokenizer, steps=2, batch=4, rate=1e-3, seed=0, clips=2)
        return torch.cat([parameter.detach().flatten() for parameter in small.parameters()])

    assert torch.equal(weights(), weights())
