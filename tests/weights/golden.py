"""Comparisons of an adapter's answers with reference values; a difference is an AssertionError."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openavs.media.audio import read_audio, resample
from openavs.stages.captioners.audio_lm import AudioLmCaptioner
from openavs.stages.captioners.base import crop_or_pad
from openavs.stages.captioners.clap import ClapCaptioner
from openavs.stages.captioners.pe_a_frame import PeAFrameCaptioner
from openavs.stages.detectors.base import Detector
from openavs.stages.segmenters.base import PhraseSegmenter, Segmenter
from openavs.stages.verifiers.pe_av_model import PeAudioVideoEmbedder
from openavs.structures.masks import iou
from openavs.structures.types import AudioWindow, Box, Detection, ImageArray, Waveform

SCORE = 1e-3
PIXELS = 0.5


def close(found: Sequence[float], expected: Sequence[float], tolerance: float) -> None:
    """Equal in number, order and value."""
    assert list(found) == pytest.approx(list(expected), abs=tolerance, rel=0)


def check_boxes(
    detector: Detector, image: ImageArray, phrase: str, scores: Sequence[float], first: Box, floor: float
) -> None:
    """The candidates of one phrase with at least `floor`, best first: their scores, and the box of the first."""
    found = [box for box in detector.detect([image], [[phrase]])[0] if box.score >= floor]
    close([box.score for box in found], scores, SCORE)
    close(found[0].box, first, PIXELS)


def check_things(
    detector: Detector, image: ImageArray, phrases: Sequence[str], expected: Sequence[Detection], floor: float
) -> None:
    """The candidates with at least `floor`: phrase, score within 0.02, IoU of 0.95 with the box, in any order."""
    found = [box for box in detector.detect([image], [list(phrases)])[0] if box.score >= floor]
    assert len(found) == len(expected)
    for wanted in expected:
        best = max(found, key=lambda box: iou(box.box, wanted.box))
        assert iou(best.box, wanted.box) >= 0.95, (best, wanted)
        assert best.phrase == wanted.phrase
        close([best.score], [wanted.score], 0.02)


def check_masks(segmenter: Segmenter, image: ImageArray, boxes: Sequence[Box], scores: Sequence[float]) -> None:
    """The mask scores (estimated IoU) of boxes; masks have the size of the picture."""
    masks = segmenter.segment([image], [list(boxes)])[0]
    close([mask.score or 0.0 for mask in masks], scores, SCORE)
    assert all(mask.rle.size == image.shape[:2] for mask in masks)


def check_phrase(
    segmenter: PhraseSegmenter, image: ImageArray, phrase: str, expected: Sequence[Detection], floor: float
) -> None:
    """The finds of one phrase with at least `floor`, best first: scores and boxes."""
    found = [box for box, _ in segmenter.segment_phrases([image], [[phrase]])[0] if box.score >= floor]
    close([box.score for box in found], [box.score for box in expected], SCORE)
    for box, wanted in zip(found, expected, strict=True):
        close(box.box, wanted.box, PIXELS)


def check_embedding(captioner: ClapCaptioner, audio: Waveform, mean: float) -> None:
    """The mean of the audio embedding, which has length 1."""
    embedding = captioner._embed_sounds([captioner._prepare(audio)])[0].float().cpu()
    close([float(embedding.norm())], [1.0], SCORE)
    close([float(embedding.mean())], [mean], SCORE)


def check_labels(captioner: ClapCaptioner, sounds: Sequence[tuple[Path, str]], least: float) -> None:
    """The share of sound files whose best caption is their label."""
    wrong = []
    for path, label in sounds:
        audio = read_audio(path)
        assert audio is not None, path
        best = captioner.caption([AudioWindow(audio, 0.0, audio.duration)])[0][0].text
        if best != label:
            wrong.append(f"{path.name}: {best}")
    assert len(sounds) - len(wrong) >= least * len(sounds), wrong


def check_frames(captioner: PeAFrameCaptioner, audio: Waveform) -> None:
    """Compare the scores of every frame with a direct call of the library on the whole sound."""
    import torch

    rate = captioner.processor.feature_extractor.sampling_rate
    samples = crop_or_pad(audio, rate)
    sound = captioner.processor.feature_extractor([samples], sampling_rate=rate, return_tensors="pt")
    text = captioner.processor.tokenizer(list(captioner.vocabulary), padding=True, return_tensors="pt")
    inputs = {"input_ids": text.input_ids, "attention_mask": text.attention_mask, **sound}
    with torch.inference_mode():
        output = captioner.model(**{name: value.to(captioner.device) for name, value in inputs.items()})
    expected = output.logits_audio_text[0].sigmoid().float().cpu().numpy()
    found = np.concatenate(list(captioner.scores(audio)), axis=1)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < SCORE


def check_answer(captioner: AudioLmCaptioner, audio: Waveform, tokens: int, answer: str) -> None:
    """Compare the number of audio vectors and the answer to the captioner's first question."""
    import torch

    window, extractor = AudioWindow(audio, 0.0, audio.duration), captioner.processor.extractor
    with torch.inference_mode():
        (vectors,) = captioner._encode([crop_or_pad(audio, extractor.sampling_rate, extractor.n_samples)], [window])
    assert len(vectors) == tokens
    found: list[Any] = captioner.caption([window])
    assert found[0][0].text == answer


def check_pairs(embedder: PeAudioVideoEmbedder, sound: Waveform, film: ImageArray, phrase: str) -> None:
    """The logits of a sound, a film `[T, side, side, 3]` and a phrase are those of the library's own call."""
    samples = resample(sound, 48_000).samples
    text = embedder._tokenizer([phrase], return_tensors="pt")
    audio = embedder._sounds(samples, sampling_rate=48_000, return_tensors="pt")
    video = embedder._films([torch.from_numpy(film).permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt")
    inputs = {
        "input_ids": text["input_ids"],
        "attention_mask": text["attention_mask"],
        "input_values": audio["input_values"],
        "padding_mask": audio["padding_mask"],
        "pixel_values_videos": video["pixel_values_videos"],
    }
    with torch.no_grad():
        theirs = embedder.model(**{name: value.to(embedder.model.device) for name, value in inputs.items()})
    states = [embedder.embed_sound(sound)]
    ours = embedder.logits(states, embedder.embed_films([film]), embedder.embed_phrase(phrase))
    close([float(ours.sound)], [float(theirs.logits_audio_video)], SCORE)
    close([float(ours.sound_and_text)], [float(theirs.logits_audio_plus_text_video)], SCORE)
