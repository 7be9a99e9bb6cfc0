"""The CLAP captioner says what the library's own processor and model say, one window at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from transformers import ClapModel, ClapProcessor

from openavs.errors import InputError, ModelError, OpenAVSError
from openavs.stages.captioners.base import Captioner
from openavs.stages.captioners.clap import ClapCaptioner
from openavs.structures.types import AudioWindow, Waveform
from tests.tiny_models import CLAP_RATE, make_clap, make_sam

WORDS = ["dog", "bell", "engine", "siren", "bird", "guitar and rain"]
TEMPLATE = "This is a sound of {}."


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fused"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clap(tmp_path_factory.mktemp("clap") / "model", fused=request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clap(tmp_path_factory.mktemp("clap") / "plain")


def tone(seconds: float, hertz: float, rate: int = CLAP_RATE, start: float = 0.0) -> AudioWindow:
    """A tone in a little noise."""
    count = round(seconds * rate)
    noise = np.random.default_rng(round(hertz)).standard_normal(count) * 0.01
    samples = 0.3 * np.sin(2 * np.pi * hertz * np.arange(count) / rate) + noise
    return AudioWindow(Waveform(samples.astype(np.float32), rate), start, start + seconds)


def library_scores(folder: Path, window: AudioWindow) -> np.ndarray:
    """Probabilities by a direct call of ClapProcessor and ClapModel on one window that fits the model."""
    processor: Any = ClapProcessor.from_pretrained(folder)
    model: Any = ClapModel.from_pretrained(folder).eval()
    texts = [TEMPLATE.format(word) for word in WORDS]
    inputs = processor(
        text=texts, audio=window.audio.samples, sampling_rate=CLAP_RATE, padding=True, return_tensors="pt"
    )
    inputs["is_longer"] = torch.zeros(1, 1, dtype=torch.bool)  # as in LAION's own inference
    with torch.no_grad():
        return model(**inputs).logits_per_audio[0].softmax(-1).numpy()


def everything(folder: Path, **options: Any) -> ClapCaptioner:
    """A captioner that returns every label with the plain softmax score of one template."""
    plain = {"things": False, "template": TEMPLATE, "logit_scale": None}
    settings = {"vocabulary": WORDS, "top_k": len(WORDS), "threshold": 0.0, **plain} | options
    return ClapCaptioner(model=str(folder), **settings)


def scores(captioner: ClapCaptioner, windows: list[AudioWindow]) -> np.ndarray:
    """[windows, vocabulary], in the order of the vocabulary."""
    found = [{caption.text: caption.score for caption in captions} for captions in captioner.caption(windows)]
    return np.array([[answer[word] for word in captioner.vocabulary] for answer in found])


def test_scores_equal_those_of_transformers(folder: Path) -> None:
    windows = [tone(1.0, 200), tone(0.4, 3000), tone(0.7, 900), tone(0.05, 5000)]
    ours = scores(everything(folder), windows)
    assert np.abs(ours - [library_scores(folder, window) for window in windows]).max() < 1e-5
    assert np.ptp(ours, axis=0).max() > 0.01  # and the sounds do differ


def test_a_window_does_not_depend_on_its_batch(folder: Path) -> None:
    windows = [tone(1.0, 200), tone(0.4, 3000), tone(3.0, 900), tone(0.7, 500)]
    together = scores(everything(folder), windows)
    for batch_size in (1, 3):
        assert np.abs(scores(everything(folder, batch_size=batch_size), windows) - together).max() < 1e-5


def test_other_rates_are_resampled(folder: Path) -> None:
    window = tone(0.8, 700, rate=44_100)
    samples = soxr.resample(window.audio.samples, 44_100, CLAP_RATE)
    expected = library_scores(folder, AudioWindow(Waveform(samples, CLAP_RATE), 0.0, 0.8))
    assert np.abs(scores(everything(folder), [window])[0] - expected).max() < 1e-5


def test_long_windows_are_always_cropped_to_their_center(folder: Path) -> None:
    parts = [tone(1.0, hertz).audio.samples for hertz in (200, 3000, 900)]
    window = AudioWindow(Waveform(np.concatenate(parts), CLAP_RATE), 0.0, 3.0)
    captioner = everything(folder)
    first, again = (scores(captioner, [window])[0] for _ in range(2))
    assert np.array_equal(first, again)
    center = AudioWindow(Waveform(parts[1], CLAP_RATE), 0.0, 1.0)
    assert np.abs(first - library_scores(folder, center)).max() < 1e-5


def test_captions_are_the_best_above_the_threshold_with_their_times(plain: Path) -> None:
    window = tone(1.0, 200, start=4.0)
    [ranked] = everything(plain).caption([window])
    assert sum(caption.score or 0.0 for caption in ranked) == pytest.approx(1.0)
    assert ranked == sorted(ranked, key=lambda caption: -(caption.score or 0.0))
    assert {(caption.start, caption.end, caption.question) for caption in ranked} == {(4.0, 5.0, TEMPLATE)}
    assert everything(plain, top_k=2).caption([window]) == [ranked[:2]]
    threshold = ranked[2].score
    assert threshold is not None and ranked[3].score is not None and ranked[3].score < threshold
    assert everything(plain, threshold=threshold).caption([window]) == [ranked[:3]]
    [weak] = everything(plain, threshold=1.0).caption([window])
    assert weak == [replace(ranked[0], weak=True)], "the best one below the threshold says how close it came"


def test_a_longer_context_is_combined_with_the_window(plain: Path) -> None:
    short, longer = tone(1.0, 200), tone(0.8, 3000)
    both = replace(short, context=longer.audio)
    captioner = everything(plain)
    expected = np.sqrt(scores(captioner, [short])[0] * scores(captioner, [longer])[0])
    assert np.abs(scores(captioner, [both, short])[0] - expected / expected.sum()).max() < 1e-6
    assert np.abs(scores(captioner, [both, short])[1] - scores(captioner, [short])[0]).max() < 1e-6


def test_several_templates_are_averaged_in_the_embedding_space(plain: Path) -> None:
    one, two = everything(plain), everything(plain, template="{} is near")
    both = everything(plain, template=[TEMPLATE, "{} is near"])
    mean = one._text_embeddings() + two._text_embeddings()
    expected = mean / mean.norm(dim=-1, keepdim=True)
    assert torch.allclose(both._text_embeddings(), expected, atol=1e-6)
    assert not torch.allclose(one._text_embeddings(), two._text_embeddings(), atol=1e-3)


def test_texts_are_embedded_once_and_their_encoder_is_released(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = everything(plain, batch_size=4)
    passes = count_text_passes(captioner, monkeypatch)
    for _ in range(3):
        captioner.caption([tone(1.0, 200), tone(0.5, 400)])
    assert passes == [4, 2]  # six texts, four at a time
    assert not any(name.startswith("text_model") for name, _ in captioner.model.named_parameters())
    assert captioner._text_encoder is None


def count_text_passes(captioner: ClapCaptioner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of each pass through the text encoder from now on."""
    passes: list[int] = []
    embed = captioner._embed_texts

    def counted(texts: list[str]) -> torch.Tensor:
        passes.append(len(texts))
        return embed(texts)

    monkeypatch.setattr(captioner, "_embed_texts", counted)
    return passes


def test_no_windows_and_windows_without_samples(plain: Path) -> None:
    captioner = everything(plain, top_k=1)
    empty = AudioWindow(Waveform(np.zeros(0, np.float32), 44_100), 0.0, 0.0)
    assert captioner.caption([]) == []
    assert [len(captions) for captions in captioner.caption([empty, tone(1.0, 200), empty])] == [0, 1, 0]


def test_it_is_a_captioner_and_records_its_model(plain: Path) -> None:
    captioner = everything(plain)
    assert isinstance(captioner, Captioner)
    assert captioner.models == {str(plain): {"revision": None, "license": None, "path": str(plain)}}


def test_nonfinite_scores_are_an_error_that_names_the_window(plain: Path) -> None:
    captioner = everything(plain)
    captioner.model.audio_projection.linear2.bias.fill_(float("nan"))
    with pytest.raises(OpenAVSError, match="not finite for the window from 2 to 3 s"):
        captioner.caption([tone(1.0, 200, start=2.0)])


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"batch_size": 0},
        {"threshold": 1.5},
        {"template": "a sound"},
        {"template": "{} {}"},
        {"template": []},
        {"logit_scale": 0},
        {"min_ratio": -1},
    ],
)
def test_options_out_of_range_are_refused(plain: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"clap: .*{next(iter(options))}"):
        everything(plain, **options)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"ClapProcessor|ClapModel"):
        everything(make_sam(tmp_path / "sam"))


def test_text_similarity_is_that_of_the_embeddings(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = everything(plain)
    table = captioner.text_similarity(["dog", "bell"], ["bell", "dog", "siren"])
    assert table.shape == (2, 3)
    assert np.allclose([table[0, 1], table[1, 0]], 1.0, atol=1e-5)  # a text and itself
    assert table[0, 1] > table[0, 2]
    assert np.abs(table).max() <= 1 + 1e-5
    passes = count_text_passes(captioner, monkeypatch)
    again = captioner.text_similarity(["bell"], ["bell", "dog", "siren"])
    assert passes == [1], "the labels are known by then"
    assert np.allclose(again[0], table[1], atol=1e-6)
    captioner.caption([tone(1.0, 200)])
    assert captioner._text_encoder is not None, "the next clip has phrases, too"
