"""The PE-A-Frame captioner gives the scores of a direct call of the library, at the right times, for any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from transformers import PeAudioFrameLevelModel, PeAudioProcessor

from openavs.errors import InputError, InvalidOutputError, ModelError
from openavs.stages.captioners.base import Captioner, EventCaptioner
from openavs.stages.captioners.pe_a_frame import PeAFrameCaptioner
from openavs.structures.types import Waveform
from tests.tiny_audio import make_pe_a_frame
from tests.tiny_models import make_clap

RATE, HOP = 48_000, 1920
WORDS = ["dog barking", "bell ringing", "engine", "siren and rain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pe_a_frame(tmp_path_factory.mktemp("pe") / "model")


@pytest.fixture(scope="module")
def captioner(folder: Path) -> PeAFrameCaptioner:
    return make(folder)


def make(folder: Path, **options: Any) -> PeAFrameCaptioner:
    return PeAFrameCaptioner(model=str(folder), **({"vocabulary": WORDS, "device": "cpu"} | options))


def sound(seconds: float, seed: int = 0, rate: int = RATE) -> Waveform:
    """Noise whose level changes twice a second."""
    rng = np.random.default_rng(seed)
    count = round(seconds * rate)
    level = np.repeat(rng.uniform(0.0, 0.5, 2 * round(seconds) + 2), rate // 2)[:count]
    return Waveform((level * rng.standard_normal(count)).clip(-1, 1).astype(np.float32), rate)


def scores_of(captioner: PeAFrameCaptioner, audio: Waveform) -> np.ndarray:
    return np.concatenate(list(captioner.scores(audio)), axis=1)


def library_scores(folder: Path, samples: np.ndarray, texts: list[str]) -> np.ndarray:
    """Scores `[texts, frames]` by the library's own processor and forward pass."""
    processor: Any = PeAudioProcessor.from_pretrained(folder)
    model: Any = PeAudioFrameLevelModel.from_pretrained(folder).eval()
    audio = processor.feature_extractor([samples], sampling_rate=RATE, return_tensors="pt")
    text = processor.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(input_ids=text.input_ids, attention_mask=text.attention_mask, **audio)
    return output.logits_audio_text[0].sigmoid().numpy()


@pytest.mark.parametrize("seconds", [0.01, 0.5, 3.017])
def test_scores_equal_those_of_transformers(folder: Path, captioner: PeAFrameCaptioner, seconds: float) -> None:
    audio = sound(seconds)
    ours = scores_of(captioner, audio)
    assert ours.shape == (len(WORDS), -(-len(audio.samples) // HOP))
    assert np.abs(ours - library_scores(folder, audio.samples, WORDS)).max() < 1e-5


def test_scores_of_the_random_model_vary_over_time_and_texts(captioner: PeAFrameCaptioner) -> None:
    scores = scores_of(captioner, sound(4.0))
    assert np.ptp(scores, axis=0).max() > 0.02
    assert np.ptp(scores, axis=1).max() > 0.02


def test_other_rates_are_resampled(folder: Path, captioner: PeAFrameCaptioner) -> None:
    audio = sound(23.0, rate=22_050)
    samples = soxr.resample(audio.samples, 22_050, RATE)
    assert np.abs(scores_of(captioner, audio) - library_scores(folder, samples, WORDS)).max() < 1e-5


def test_a_piece_does_not_depend_on_its_batch(folder: Path) -> None:
    audio = sound(13.03)
    pieces = {"piece_seconds": 3.0, "overlap_seconds": 0.5}
    alone = scores_of(make(folder, batch_size=1, **pieces), audio)
    together = scores_of(make(folder, batch_size=4, **pieces), audio)
    assert np.abs(alone - together).max() < 1e-5


def test_a_long_clip_has_the_scores_of_its_pieces_and_fades_between_them(folder: Path) -> None:
    captioner = make(folder, piece_seconds=3.0, overlap_seconds=0.4)
    audio = sound(8.019)
    starts, length = captioner._plan(len(audio.samples))
    ours = scores_of(captioner, audio)
    assert len(starts) == 3 and length <= 75 and ours.shape[1] == 201
    parts = [library_scores(folder, audio.samples[s * HOP : (s + length) * HOP], WORDS) for s in starts]
    expected, end = np.zeros_like(ours), 0
    for start, part in zip(starts, parts, strict=True):
        faded = end - start  # frames in which the piece before counts, too
        share = (np.arange(faded) + 0.5) / max(faded, 1)
        expected[:, start:end] = expected[:, start:end] * (1 - share) + part[:, :faded] * share
        end = start + length
        expected[:, start + faded : end] = part[:, faded:]
    assert np.abs(ours - expected).max() < 1e-5


def test_each_value_stands_for_the_samples_of_its_own_hop(captioner: PeAFrameCaptioner) -> None:
    """The samples that value j of the codec depends on lie evenly around the middle of hop j."""
    samples = torch.from_numpy(sound(1.2).samples[: 30 * HOP])[None, None].requires_grad_()
    codec = captioner.model.audio_encoder.embedder.dac_encoder
    for j in (14, 15):
        (gradient,) = torch.autograd.grad(codec(samples)[0, :, j].sum(), samples)
        reached = torch.nonzero(gradient[0, 0]).squeeze(1)
        middle = (int(reached[0]) + int(reached[-1])) / 2
        assert middle == pytest.approx((j + 0.5) * HOP - 0.5, abs=1.0)


def test_texts_are_embedded_as_in_forward_and_once(folder: Path) -> None:
    captioner = make(folder, vocabulary=[*WORDS, *(f"door {word}" for word in WORDS)])
    passes: list[int] = []
    captioner.model.text_model.register_forward_hook(lambda *_: passes.append(1))
    for _ in range(2):
        captioner.events(sound(1.0))
    assert len(passes) == 1
    again = make(folder, vocabulary=WORDS)
    with torch.inference_mode():
        difference = captioner._text_embeddings()[: len(WORDS)] - again._text_embeddings()
    assert difference.abs().max() < 1e-5


def test_several_templates_average_the_logits(folder: Path) -> None:
    audio = sound(1.0)
    one, two, both = (scores_of(make(folder, template=own), audio) for own in ("{}", "the {}", ["{}", "the {}"]))

    def logit(scores: np.ndarray) -> np.ndarray:
        return np.log(scores / (1 - scores))

    assert np.abs(logit(both) - (logit(one) + logit(two)) / 2).max() < 1e-4


def test_events_follow_from_the_scores(folder: Path) -> None:
    audio = sound(4.0)
    scores = scores_of(make(folder), audio)
    threshold = float(np.quantile(scores, 0.7))
    options = {"threshold": threshold, "off_threshold": threshold, "min_seconds": 0.0, "merge_seconds": 0.0}
    events = make(folder, top_k=len(WORDS), things=False, **options).events(audio)
    found = np.zeros(scores.shape, dtype=bool)
    for event in events:
        first, last = round(event.onset * 25), round(event.offset * 25)
        found[WORDS.index(event.phrase), first:last] = True
        assert len(event.curve) == last - first and event.rate == 25.0
        assert event.score == max(event.curve)
    assert events and np.array_equal(found, scores >= threshold)


def test_the_last_event_ends_with_the_clip(folder: Path) -> None:
    audio = sound(2.015)
    events = make(folder, threshold=0.01, off_threshold=0.01, things=False).events(audio)
    assert events[-1].offset == audio.duration


def test_audio_without_samples_has_no_events(captioner: PeAFrameCaptioner) -> None:
    assert captioner.events(Waveform(np.zeros(0, np.float32), 16_000)) == []


def test_equal_phrases_are_most_similar(captioner: PeAFrameCaptioner) -> None:
    similarity = captioner.text_similarity(["engine", "bell ringing"], WORDS)
    assert similarity.shape == (2, len(WORDS))
    assert similarity.argmax(axis=1).tolist() == [2, 1]
    assert similarity.max() == pytest.approx(1.0, abs=1e-5)


def test_it_gives_events_and_no_captions_of_windows(captioner: PeAFrameCaptioner, folder: Path) -> None:
    assert isinstance(captioner, EventCaptioner) and not isinstance(captioner, Captioner)
    assert list(captioner.models) == [str(folder)]


def test_scores_that_are_not_finite_are_an_error(folder: Path) -> None:
    captioner = make(folder)
    with torch.no_grad():
        captioner.model.text_audio_logit_bias.fill_(torch.nan)
    with pytest.raises(InvalidOutputError, match="not finite for the piece that begins at 0 s"):
        captioner.events(sound(1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is at least 1"),
        ({"piece_seconds": 0.5}, "piece_seconds is at least 1"),
        ({"piece_seconds": 6.0, "overlap_seconds": 2.1}, "overlap_seconds from 0 to a third"),
        ({"template": "a sound"}, "template needs one {}"),
        ({"threshold": 0.1}, "off_threshold is above 0 and at most threshold"),
        ({"vocabulary": "./no-such-file.txt"}, "cannot be read"),
    ],
)
def test_options_out_of_range_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(folder, **options)


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        make(make_clap(tmp_path / "clap"))


def test_memory_does_not_grow_with_the_clip(folder: Path, tmp_path: Path) -> None:
    """Two minutes from a memory map at a low rate; a piece and a block of the resampler are in memory at once."""
    path = tmp_path / "long.f32"
    np.tile(sound(20.0, rate=8000).samples, 6).tofile(path)
    audio = Waveform(np.memmap(path, dtype=np.float32, mode="r"), 8000)
    captioner = make(folder, piece_seconds=5.0, overlap_seconds=1.5, batch_size=1)
    starts, length = captioner._plan(120 * RATE)
    sizes = [len(piece) for piece in captioner._pieces(audio, starts, length)]
    assert set(sizes) == {length * HOP} and len(sizes) == len(starts) > 30
