"""The audio tagger says what the library's own feature extractor and classifier say, one window at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from openavs.errors import InputError, ModelError, OpenAVSError
from openavs.stages.captioners.audio_tagger import AudioTaggerCaptioner
from openavs.stages.captioners.base import Captioner
from openavs.structures.types import AudioWindow, Waveform
from tests import tiny_audio
from tests.tiny_audio import LABELS, RATE
from tests.tiny_models import make_sam

MAKERS: dict[str, Callable[[Path], Path]] = {
    "ast": tiny_audio.make_ast,
    "wav2vec2": tiny_audio.make_wav2vec2,
    "whisper": tiny_audio.make_whisper_tagger,
}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MAKERS[request.param](tmp_path_factory.mktemp("tagger") / str(request.param))


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_audio.make_ast(tmp_path_factory.mktemp("tagger") / "ast")


def tone(seconds: float, hertz: float, rate: int = RATE, start: float = 0.0) -> AudioWindow:
    """A tone in a little noise."""
    count = round(seconds * rate)
    noise = np.random.default_rng(round(hertz)).standard_normal(count) * 0.01
    samples = 0.3 * np.sin(2 * np.pi * hertz * np.arange(count) / rate) + noise
    return AudioWindow(Waveform(samples.astype(np.float32), rate), start, start + seconds)


WINDOWS = [tone(0.9, 200), tone(0.4, 3000), tone(0.9, 900), tone(0.15, 5000)]


def load(folder: Path, **options: Any) -> AudioTaggerCaptioner:
    return AudioTaggerCaptioner(
        model=str(folder), device="cpu", **({"top_k": 5, "threshold": 0.0, "things": False} | options)
    )


def scores(captioner: AudioTaggerCaptioner, windows: list[AudioWindow]) -> np.ndarray:
    """[windows, labels], in the order of the labels."""
    found = [{caption.text: caption.score for caption in captions} for captions in captioner.caption(windows)]
    return np.array([[answer[label] for label in LABELS] for answer in found])


def library_logits(folder: Path, window: AudioWindow) -> torch.Tensor:
    """A direct call of the checkpoint's feature extractor and model."""
    extractor: Any = AutoFeatureExtractor.from_pretrained(folder)
    model: Any = AutoModelForAudioClassification.from_pretrained(folder).eval()
    inputs = extractor(window.audio.samples, sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits[0]


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_scores_equal_those_of_transformers(folder: Path, scoring: str) -> None:
    ours = scores(load(folder, scores=scoring), WINDOWS)
    theirs = torch.stack([library_logits(folder, window) for window in WINDOWS])
    theirs = theirs.sigmoid() if scoring == "sigmoid" else theirs.softmax(-1)
    assert np.abs(ours - theirs.numpy()).max() < 1e-5
    assert np.ptp(ours, axis=0).max() > 0.01  # and the sounds do differ


def test_a_window_does_not_depend_on_its_batch(folder: Path) -> None:
    together = scores(load(folder), WINDOWS)
    for batch_size in (1, 3):
        assert np.abs(scores(load(folder, batch_size=batch_size), WINDOWS) - together).max() < 1e-5


def test_windows_of_one_length_share_a_batch(ast: Path) -> None:
    captioner = load(ast)
    rows: list[int] = []
    captioner.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_values"])), with_kwargs=True
    )
    captioner.caption([tone(0.5, hertz) for hertz in (200, 300, 400)])
    assert rows == [3]


def test_other_rates_are_resampled(ast: Path) -> None:
    window = tone(0.8, 700, rate=44_100)
    at_rate = AudioWindow(Waveform(soxr.resample(window.audio.samples, 44_100, RATE), RATE), 0.0, 0.8)
    assert load(ast).caption([window]) == load(ast).caption([at_rate])


def test_long_windows_are_cropped_to_their_center(ast: Path) -> None:
    length = 99 * 160 + 400  # a hundred frames
    parts = [tone(2.0, hertz).audio.samples[:length] for hertz in (200, 3000, 900)]
    long = AudioWindow(Waveform(np.concatenate(parts), RATE), 0.0, 3.0)
    center = AudioWindow(Waveform(parts[1], RATE), 0.0, 3.0)
    assert load(ast).caption([long]) == load(ast).caption([center])


def test_no_windows_and_very_short_windows(folder: Path) -> None:
    captioner = load(folder, top_k=1)
    empty = AudioWindow(Waveform(np.zeros(0, np.float32), 44_100), 0.0, 0.0)
    assert captioner.caption([]) == []
    answers = captioner.caption([empty, tone(1.0, 200), tone(0.001, 200)])
    assert [len(captions) for captions in answers] == [0, 1, 1]


def test_captions_are_the_best_above_the_threshold_with_their_times(ast: Path) -> None:
    window = tone(0.9, 200, start=4.0)
    [ranked] = load(ast, scores="softmax").caption([window])
    assert sum(caption.score or 0.0 for caption in ranked) == pytest.approx(1.0)
    assert ranked == sorted(ranked, key=lambda caption: -(caption.score or 0.0))
    assert {(caption.start, caption.end, caption.question) for caption in ranked} == {(4.0, 4.9, "")}
    assert {caption.text for caption in ranked} == set(LABELS)
    assert load(ast, scores="softmax", top_k=2).caption([window]) == [ranked[:2]]
    threshold = ranked[2].score
    assert threshold is not None and ranked[3].score is not None and ranked[3].score < threshold
    assert load(ast, scores="softmax", threshold=threshold).caption([window]) == [ranked[:3]]


@pytest.mark.parametrize(
    ("problem", "labels", "scoring"),
    [
        ("multi_label_classification", 5, "sigmoid"),
        ("single_label_classification", 5, "softmax"),
        (None, 5, "softmax"),
        (None, 527, "sigmoid"),  # AudioSet: several sounds at once
    ],
)
def test_the_checkpoint_decides_about_sigmoid_or_softmax(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str | None, labels: int, scoring: str
) -> None:
    monkeypatch.setattr(tiny_audio, "LABELS", [f"sound {i}" for i in range(labels)])
    assert load(tiny_audio.make_ast(tmp_path / "ast", problem=problem)).scores == scoring


def test_it_is_a_captioner_and_records_its_model(ast: Path) -> None:
    captioner = load(ast)
    assert isinstance(captioner, Captioner)
    assert captioner.models == {str(ast): {"revision": None, "license": None, "path": str(ast)}}


def test_nonfinite_scores_are_an_error_that_names_the_window(ast: Path) -> None:
    captioner = load(ast)
    captioner.model.classifier.dense.bias.fill_(float("nan"))
    with pytest.raises(OpenAVSError, match="not finite for the window from 2 to 3 s"):
        captioner.caption([tone(1.0, 200, start=2.0)])


@pytest.mark.parametrize("options", [{"top_k": 0}, {"batch_size": 0}, {"threshold": 1.5}, {"scores": "linear"}])
def test_options_out_of_range_are_refused(ast: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"audio-tagger: .*{next(iter(options))}"):
        load(ast, **options)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="sam"):
        load(make_sam(tmp_path / "sam"))


def test_labels_without_names_are_refused(tmp_path: Path) -> None:
    folder = tiny_audio.make_ast(tmp_path / "ast")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(len(LABELS))}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not name its 5 labels"):
        load(folder)
