"""The verifier pe-av against direct calls of the library, at tiny random size: `make test-timm`.

transformers needs timm and torchvision for this model, which have an environment of their own; elsewhere most of these
tests skip. The rule and the cut-outs are tested everywhere (`test_contrast.py`, `test_candidates.py`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoProcessor, PeAudioVideoModel

from openavs.config.recipe import load_recipe
from openavs.errors import InputError, InvalidOutputError, ModelError
from openavs.media.clip import open_clip
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import Registry
from openavs.stages.verifiers.base import TemporalVerifier
from openavs.stages.verifiers.pe_av import PeAvVerifier, choose_sounding, shuffled_evidence
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Clip, ClipEvidence, Frame, ImageArray, Prompt, Segment, TrackedFrame, Waveform
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.stages.verifiers.tiny_pe_av import EDGE, FRAMES, make_pe_av, tiny_model
from tests.tiny_models import make_clap
from tests.weights import golden

SIZE = (48, 64)
RATE = 16_000
SECONDS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pe_av(tmp_path_factory.mktemp("pe_av") / "model")


@pytest.fixture(scope="module")
def verifier(folder: Path) -> PeAvVerifier:
    return PeAvVerifier(model=str(folder), window=2.0)


def noise(seconds: float, seed: int = 0, rate: int = RATE) -> Waveform:
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * rate))
    return Waveform(samples.astype(np.float32), rate)


def film(side: int, seed: int = 0) -> ImageArray:
    return np.random.default_rng(seed).integers(0, 256, (FRAMES, side, side, 3), dtype=np.uint8)


def picture_at(time: float) -> ImageArray:
    return np.random.default_rng(round(time * 1000)).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def dense(fps: float, longest_side: int) -> Any:
    return (Frame(i, (i + 0.5) / fps, picture_at((i + 0.5) / fps)) for i in range(round(SECONDS * fps)))


def segment(x: int, *, phrase: str = "dog", track: int | None = None, side: int = 16) -> Segment:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[10 : 10 + side, x : x + side] = True
    return Segment(mask_to_rle(mask), (x, 10.0, x + side, 10.0 + side), phrase, 0.5, track=track)


def make_clip(audio: Waveform | None, *, moving: bool = True, fps: float = 1.0) -> Clip:
    times = tuple((i + 0.5) / fps for i in range(round(SECONDS * fps)))
    frames = [Frame(i, at, picture_at(at)) for i, at in enumerate(times)]
    return Clip("clip", times, fps, SIZE, lambda wanted: iter(frames), audio, dense_frames=dense if moving else None)


def run(
    verifier: PeAvVerifier, clip: Clip, segments: Iterable[Iterable[Segment]], phrases: tuple[str, ...] = ("dog",)
) -> list[TrackedFrame]:
    """Verify a clip whose frame i has these segments; frames are given one by one."""
    frames = list(clip.frames(None))
    tracked = (TrackedFrame(f, phrases, tuple(own)) for f, own in zip(frames, segments, strict=False))
    prompts = [tuple(Prompt(phrase) for phrase in phrases)] * len(clip.times)
    return list(verifier.verify_clip(tracked, ClipEvidence(clip, prompts)))


def decisions(frame: TrackedFrame) -> list[str]:
    return [own.verdicts[-1].decision for own in frame.segments] + [own.reason for own in frame.rejected]


# --------------------------------------------------------------------------------------------------------- the model


@pytest.mark.timm
@pytest.mark.parametrize("size", ["alone", "together"])
def test_logits_are_those_of_direct_calls(folder: Path, verifier: PeAvVerifier, size: str) -> None:
    """`forward` takes as many sounds as films; all pairs of a batch are in its matrices."""
    model: Any = PeAudioVideoModel.from_pretrained(folder).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    sounds = [noise(1.0, seed, 48_000) for seed in range(2)]
    films = [film(side, side) for side in (20, 70)]
    text = processor.tokenizer(["barking dog"] * 2, return_tensors="pt")
    audio = processor.feature_extractor([s.samples for s in sounds], sampling_rate=48_000, return_tensors="pt")
    video = processor.video_processor(
        [torch.from_numpy(own).permute(0, 3, 1, 2) for own in films], do_sample_frames=False, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = model(
            input_ids=text["input_ids"],
            attention_mask=text["attention_mask"],
            input_values=audio["input_values"],
            pixel_values_videos=video["pixel_values_videos"],
        )
    embedder = verifier.embedder
    states = [embedder.embed_sound(sound) for sound in sounds]
    embedded = (
        embedder.embed_films(films)
        if size == "together"
        else [vector for own in films for vector in embedder.embed_films([own])]
    )
    ours = embedder.logits(states, embedded, embedder.embed_phrase("barking dog"))
    assert theirs.logits_audio_video.std() > 0.1 and theirs.logits_audio_plus_text_video.std() > 0.1
    assert torch.allclose(ours.sound, theirs.logits_audio_video, atol=1e-5)
    assert torch.allclose(ours.sound_and_text, theirs.logits_audio_plus_text_video, atol=1e-5)


@pytest.mark.timm
@pytest.mark.parametrize("seconds", [0.3, 0.5])
def test_the_comparison_for_published_checkpoints_passes(verifier: PeAvVerifier, seconds: float) -> None:
    """That of `tests/weights`: sounds of any rate and length, with the padding mask of the library's extractor."""
    golden.check_pairs(verifier.embedder, noise(seconds), film(50), "the dog")


@pytest.mark.timm
def test_loading_restores_the_model_that_was_saved(verifier: PeAvVerifier) -> None:
    """Buffers that are not in the file, such as timm's rotary embedding, included."""
    pixels, values = verifier.embedder.prepare_film(film(30)), torch.from_numpy(noise(0.4, 0, 48_000).samples)
    with torch.no_grad():
        ours, saved = (
            model(input_values=values.reshape(1, 1, -1), pixel_values_videos=pixels)
            for model in (verifier.embedder.model, tiny_model())
        )
    assert torch.allclose(ours.logits_audio_video, saved.logits_audio_video, atol=1e-5)


@pytest.mark.timm
@pytest.mark.parametrize("samples", [1, 7, 1919, 1920, 1921, 30_000])
def test_a_sound_of_any_length_is_padded_as_by_the_librarys_extractor(
    folder: Path, verifier: PeAvVerifier, samples: int
) -> None:
    sound = Waveform(noise(1.0, samples, 48_000).samples[:samples], 48_000)
    values = AutoProcessor.from_pretrained(folder).feature_extractor(
        sound.samples, sampling_rate=48_000, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = verifier.embedder.model.audio_model.audio_encoder(values["input_values"], values["padding_mask"])
    assert torch.allclose(verifier.embedder.embed_sound(sound), theirs.pooler_output[0], atol=1e-5)


@pytest.mark.timm
def test_loading_prints_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PeAvVerifier(model=str(folder))
    assert capsys.readouterr().out == ""


@pytest.mark.timm
def test_a_film_has_the_frames_of_the_processor(folder: Path, tmp_path: Path, verifier: PeAvVerifier) -> None:
    assert verifier.frames == FRAMES and verifier.embedder.prepare_film(film(9)).shape == (1, FRAMES, 3, EDGE, EDGE)
    assert PeAvVerifier(model=str(folder), frames=7).frames == 7
    assert PeAvVerifier(model=str(make_pe_av(tmp_path / "free", frames=None))).frames == 16


@pytest.mark.timm
def test_another_model_and_a_timm_that_is_too_new_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="a 'clap' model"):
        PeAvVerifier(model=str(make_clap(tmp_path / "clap")))
    monkeypatch.setattr("timm.__version__", "1.0.31")
    with pytest.raises(InputError, match=r"timm 1\.0\.31 cannot be used.*pip install \"openavs\[timm\]\""):
        PeAvVerifier(model=str(folder))


@pytest.mark.timm
def test_numbers_that_are_not_finite_are_refused(folder: Path) -> None:
    broken = PeAvVerifier(model=str(folder))
    broken.embedder.model.audio_video_logit_bias.fill_(float("nan"))
    with pytest.raises(InvalidOutputError, match="not finite; try dtype=float32"):
        run(broken, make_clip(noise(SECONDS)), [[segment(0)]])


def test_without_torchvision_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (tmp_path / "config.json").write_text('{"model_type": "pe_audio_video"}', encoding="utf-8")
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"torchvision is not installed; pip install \"openavs\[timm\]\""):
        PeAvVerifier(model=str(tmp_path))


@pytest.mark.parametrize(
    "option",
    [
        {"window": 0.0},
        {"window": 31.0},
        {"window": 2.0, "stride": 3.0},
        {"stride": 0.0},
        {"text_weight": 1.5},
        {"background": -0.1},
        {"margin": float("inf")},
        {"min_margin": -1.0},
        {"off_screen": 0.6},
        {"frames": 0},
        {"batch_size": 0},
        {"shuffles": -1},
        {"longest_side": 8},
    ],
)
def test_options_outside_their_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="pe-av: "):
        PeAvVerifier(model="unused", **option)


def test_the_registry_knows_it() -> None:
    assert Registry("verifier").load("pe-av") is PeAvVerifier and hasattr(PeAvVerifier, "verify_clip")


# ---------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.timm
def test_verdicts_follow_from_direct_calls(folder: Path) -> None:
    """Two tracks in one step, without other moments: the whole way from pixels and sound to scores."""
    verifier = PeAvVerifier(
        model=str(folder), window=2.0, shuffles=0, min_margin=0.0, off_screen=None, text_weight=0.25, margin=0.125
    )
    assert isinstance(verifier, TemporalVerifier)
    clip = make_clip(noise(SECONDS))
    (first, *_) = run(verifier, clip, [[segment(0, track=1), segment(40, track=2)]])
    assert clip.audio is not None
    embedder = verifier.embedder
    images = [frame.image for frame in dense(FRAMES / 2.0, 640)][:4]
    times = [0.1875, 0.5625, 0.9375, 1.3125]  # of 1.5 s: the window begins before the clip
    shown = [images[int(np.abs(np.array([0.25, 0.75, 1.25, 1.75]) - at).argmin())] for at in times]
    films = []
    for x in (0, 40):
        square = np.full((FRAMES, 20, 20, 3), embedder.fill, dtype=np.uint8)
        for i, image in enumerate(shown):
            square[i, 2:18, 2:18] = image[10:26, x : x + 16]
        films.append(square)
    sounds = [embedder.embed_sound(clip.audio.cut(0.0, 1.5)), *verifier.reference_sounds()]
    logits = embedder.logits(sounds, embedder.embed_films(films), embedder.embed_phrase("dog"))
    mixed = 0.75 * logits.sound + 0.25 * logits.sound_and_text
    evidence = [shuffled_evidence(float(c[0]), [float(v) for v in c[1:]]) for c in mixed.T]
    expected = choose_sounding(evidence, min_margin=0.0, off_screen=None)
    kept = [s.verdicts[-1].score for s in first.segments]
    assert kept == pytest.approx([c.score for c in expected if c.reason is None], abs=1e-5)
    assert [r.score for r in first.rejected] == pytest.approx([c.score for c in expected if c.reason], abs=1e-5)
    assert [r.margin for r in first.rejected] == pytest.approx([c.margin for c in expected if c.reason], abs=1e-4)
    assert len(first.segments) == len(first.rejected) == 1
    assert {r.reason for r in first.rejected} == {"silent"} and {r.verifier for r in first.rejected} == {"pe-av"}


@pytest.mark.timm
def test_verdicts_do_not_depend_on_the_batch(folder: Path) -> None:
    segments = [[segment(0, track=1), segment(20, track=2), segment(40, track=3)]] * SECONDS
    results = [
        run(
            PeAvVerifier(model=str(folder), window=2.0, batch_size=size, off_screen=None), make_clip(noise(6)), segments
        )
        for size in (1, 2, 8)
    ]
    scores = [[s.verdicts[-1].score for f in own for s in f.segments] for own in results]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5) and scores[0] == pytest.approx(scores[2], abs=1e-5)


@pytest.mark.timm
def test_frames_of_a_step_share_the_decision(folder: Path) -> None:
    verifier = PeAvVerifier(model=str(folder), window=2.0, stride=1.0, off_screen=None)
    clip = make_clip(noise(SECONDS), fps=4.0)
    frames = run(verifier, clip, [[segment(0, track=1)]] * len(clip.times))
    scores = [frame.segments[0].verdicts[-1].score for frame in frames]
    assert len(scores) == 24 and all(len(set(scores[i : i + 4])) == 1 for i in range(0, 24, 4))
    assert len(set(scores)) == SECONDS


@pytest.mark.timm
def test_other_moments_are_those_without_the_phrase(verifier: PeAvVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six seconds are three windows of two; the phrase sounds in the second one."""
    compared: list[int] = []
    evidence = verifier._evidence
    monkeypatch.setattr(verifier, "_evidence", lambda s, f, p: compared.append(len(s)) or evidence(s, f, p))
    clip = make_clip(noise(SECONDS))
    prompts = [(Prompt("dog"),) if i in (2, 3) else () for i in range(SECONDS)]
    tracked = [TrackedFrame(list(clip.frames(None))[i], ("dog",), (segment(0),)) for i in (2, 3)]
    list(verifier.verify_clip(tracked, ClipEvidence(clip, prompts)))
    assert compared == [1 + 2 + 1, 1 + 2 + 1]  # the sound, noise and silence, and the moment that does not overlap


@pytest.mark.timm
def test_an_earlier_verdict_and_rejection_stay(verifier: PeAvVerifier) -> None:
    clip = make_clip(noise(SECONDS))
    [before, *_] = run(verifier, clip, [[segment(0)]])
    [again] = verifier.verify_clip([before], ClipEvidence(clip, [(Prompt("dog"),)] * SECONDS))
    assert len(again.rejected) + len(again.segments) == 1
    assert len(before.rejected) == len(again.rejected) or len(again.segments[0].verdicts) == 2


@pytest.mark.timm
def test_a_rendered_clip_is_verified_after_its_tracker(folder: Path, tmp_path: Path) -> None:
    """The pipeline with the embedded models, from the file to the result."""
    scene = plan_scene([Role("dog", (True, True))], scene_rng("test", 50), 2, (160, 208))
    write_clip(tmp_path / "video.mp4", scene, fps=8)
    section = {"use": "pe-av", "model": str(folder), "window": 2.0, "off_screen": None}
    overrides = ["sample.fps=4", "tracker={use: iou}", f"verifier={json.dumps(section)}"]
    result = Pipeline.from_recipe(load_recipe("tiny", overrides))(open_clip(tmp_path / "video.mp4", fps=4.0))
    segments = [own for frame in result.frames for own in frame.segments]
    assert segments and all(own.track is not None and own.verdicts[-1].verifier == "pe-av" for own in segments)
    assert str(folder) in result.models and result.timings["verify"] > 0
    assert not {own.reason for frame in result.frames for own in frame.rejected} & {"off-screen"}


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.timm
@pytest.mark.parametrize(
    "audio", [None, Waveform(np.zeros(6 * RATE, np.float32), RATE), Waveform(np.zeros(0, np.float32), RATE)]
)
def test_silence_decides_nothing(verifier: PeAvVerifier, audio: Waveform | None) -> None:
    for frame in run(verifier, make_clip(audio), [[segment(0), segment(40)]] * SECONDS):
        assert decisions(frame) == ["unresolved", "unresolved"]
        assert frame.segments[0].verdicts[-1].margin is None


@pytest.mark.timm
def test_a_sound_that_ends_early_leaves_the_rest_unresolved(verifier: PeAvVerifier) -> None:
    frames = run(verifier, make_clip(noise(2.0)), [[segment(0)]] * SECONDS)
    assert len(frames) == SECONDS and decisions(frames[-1]) == ["unresolved"]


@pytest.mark.timm
@pytest.mark.parametrize("moving", [True, False])
def test_stills_and_frozen_frames_have_a_plain_verdict(folder: Path, moving: bool) -> None:
    verifier = PeAvVerifier(model=str(folder), window=2.0)
    image = picture_at(0.0)
    clip = make_clip(noise(SECONDS), moving=False)
    frozen = [Frame(i, at, image) for i, at in enumerate(clip.times)]
    clip = replace(clip, frames=lambda wanted: iter(frozen))
    if moving:
        clip = replace(clip, dense_frames=lambda fps, side: (Frame(i, (i + 0.5) / fps, image) for i in range(12)))
    frames = run(verifier, clip, [[segment(0), segment(40)]] * SECONDS)
    assert len(frames) == SECONDS and all(len(decisions(frame)) == 2 for frame in frames)


@pytest.mark.timm
def test_a_mask_that_is_empty_or_vanishes_is_unresolved(verifier: PeAvVerifier) -> None:
    (frame, *_) = run(verifier, make_clip(noise(SECONDS)), [[segment(0, side=0)]])
    assert decisions(frame) == ["unresolved"]


@pytest.mark.timm
def test_a_file_without_decodable_frames_in_between_is_unresolved(verifier: PeAvVerifier) -> None:
    clip = replace(make_clip(noise(SECONDS)), dense_frames=lambda fps, side: iter(()))
    assert decisions(run(verifier, clip, [[segment(0)]])[0]) == ["unresolved"]


@pytest.mark.timm
def test_one_frame_gaps_cuts_and_borders_do_not_fail(verifier: PeAvVerifier) -> None:
    clip = make_clip(noise(SECONDS))
    assert len(run(verifier, clip, [[segment(0)]])) == 1
    assert run(verifier, clip, []) == []
    jumping = [[segment(0, track=1)], [], [segment(48, track=1)], [], [], [segment(20, track=1, phrase="bell")]]
    frames = run(verifier, clip, jumping, ("dog", "bell"))
    assert [len(decisions(frame)) for frame in frames] == [1, 0, 1, 0, 0, 1]


@pytest.mark.timm
def test_memory_does_not_grow_with_the_clip(folder: Path) -> None:
    """Frames are read at most half a window and a step ahead."""
    verifier = PeAvVerifier(model=str(folder), window=2.0, shuffles=0)
    ahead: list[int] = []
    given = 0

    def source() -> Any:
        nonlocal given
        for frame in clip.frames(None):
            given += 1
            yield TrackedFrame(frame, ("dog",), (segment(0, track=1),))

    clip = make_clip(noise(SECONDS), fps=2.0)
    evidence = ClipEvidence(clip, [(Prompt("dog"),)] * len(clip.times))
    for done, _ in enumerate(verifier.verify_clip(source(), evidence), start=1):
        ahead.append(given - done)
    assert len(ahead) == 12 and max(ahead) <= 2 * (1.0 + 1.0) + 1
