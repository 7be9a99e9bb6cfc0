"""The comparisons themselves, on random models of the real classes: right values pass, wrong ones fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.media.audio import write_wav
from openavs.stages.captioners.audio_lm import AudioLmCaptioner
from openavs.stages.captioners.clap import ClapCaptioner
from openavs.stages.captioners.pe_a_frame import PeAFrameCaptioner
from openavs.stages.detectors.grounding_dino import GroundingDinoDetector
from openavs.stages.detectors.owlv2 import Owlv2Detector
from openavs.stages.segmenters.sam import SamSegmenter
from openavs.stages.segmenters.sam3 import Sam3Segmenter
from openavs.structures.types import AudioWindow, Waveform
from tests.stages.detectors.conftest import noise
from tests.tiny_audio import make_pe_a_frame, make_qwen2_audio
from tests.tiny_detectors import save_grounding_dino, save_owlv2
from tests.tiny_models import CLAP_RATE, make_clap, make_sam
from tests.tiny_sams import make_sam3
from tests.weights import golden
from tests.weights.conftest import find_checkpoint

IMAGE = noise(120, 200, seed=1)
PLACE = {"device": "cpu", "dtype": "float32", "offline": True}


def sound(seconds: float = 1.0, seed: int = 0, rate: int = CLAP_RATE) -> Waveform:
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, round(seconds * rate))
    return Waveform(samples.astype(np.float32), rate)


def fails(check: Callable[..., None], *values: Any) -> None:
    with pytest.raises(AssertionError):
        check(*values)


def test_scores_and_boxes_of_a_detector_are_compared(tmp_path: Path) -> None:
    detector = GroundingDinoDetector(model=str(save_grounding_dino(tmp_path / "m")), floor=0.0, **PLACE)
    found = detector.detect([IMAGE], [["a cat"]])[0][:3]
    floor = found[-1].score
    scores, first = [box.score for box in found], found[0].box

    def check(scores: Any, first: Any, floor: float = floor) -> None:
        golden.check_boxes(detector, IMAGE, "a cat", scores, first, floor)

    check(scores, first)
    fails(check, [scores[0] + 0.002, *scores[1:]], first)
    fails(check, scores[:2], first)
    fails(check, scores, (first[0] + 1.0, *first[1:]))
    fails(check, scores, first, 2.0)


def test_things_are_compared_in_any_order(tmp_path: Path) -> None:
    detector = Owlv2Detector(model=str(save_owlv2(tmp_path / "m")), floor=0.0, **PLACE)
    found = detector.detect([IMAGE], [["cat", "dog"]])[0]
    floor = sorted((box.score for box in found), reverse=True)[1]
    best = [box for box in found if box.score >= floor]

    def check(expected: Any) -> None:
        golden.check_things(detector, IMAGE, ["cat", "dog"], expected, floor)

    check(best[::-1])
    fails(check, best[:1])
    fails(check, [replace(best[0], score=best[0].score + 0.03), *best[1:]])
    fails(check, [replace(best[0], phrase="bird"), *best[1:]])
    fails(check, [replace(best[0], box=(0.0, 0.0, 5.0, 5.0)), *best[1:]])


def test_scores_of_frames_are_compared(tmp_path: Path) -> None:
    captioner = PeAFrameCaptioner(model=str(make_pe_a_frame(tmp_path / "m")), vocabulary=["dog", "bell"], **PLACE)
    golden.check_frames(captioner, sound(2.0))
    captioner._vocabulary_embeddings = captioner._text_embeddings().flip(0)
    fails(golden.check_frames, captioner, sound(2.0))


def test_mask_scores_are_compared(tmp_path: Path) -> None:
    segmenter = SamSegmenter(model=str(make_sam(tmp_path / "m")), **PLACE)
    boxes = [(10.0, 10.0, 90.0, 80.0), (20.0, 5.0, 150.0, 110.0)]
    scores = [mask.score or 0.0 for mask in segmenter.segment([IMAGE], [boxes])[0]]
    golden.check_masks(segmenter, IMAGE, boxes, scores)
    fails(golden.check_masks, segmenter, IMAGE, boxes, [scores[0], scores[1] + 0.002])
    fails(golden.check_masks, segmenter, IMAGE, boxes, scores[:1])


def test_finds_of_a_phrase_are_compared(tmp_path: Path) -> None:
    segmenter = Sam3Segmenter(model=str(make_sam3(tmp_path / "m")), floor=0.0, **PLACE)
    found = [box for box, _ in segmenter.segment_phrases([IMAGE], [["dog"]])[0]][:2]

    def check(expected: Any) -> None:
        golden.check_phrase(segmenter, IMAGE, "dog", expected, found[-1].score)

    check(found)
    fails(check, [found[0], replace(found[1], score=found[1].score + 0.002)])
    fails(check, [replace(found[0], box=tuple(edge + 1.0 for edge in found[0].box)), found[1]])
    fails(check, found[:1])


def test_sounds_are_compared(tmp_path: Path) -> None:
    words = {"vocabulary": ["dog", "bell", "rain"], "things": False, "threshold": 0.0, "top_k": 1}
    captioner = ClapCaptioner(model=str(make_clap(tmp_path / "m", fused=True)), **words, **PLACE)
    audio = sound()
    mean = float(captioner._embed_sounds([captioner._prepare(audio)])[0].mean())
    golden.check_embedding(captioner, audio, mean)
    fails(golden.check_embedding, captioner, audio, mean + 0.002)
    write_wav(tmp_path / "one.wav", audio)
    best = captioner.caption([AudioWindow(audio, 0.0, 1.0)])[0][0].text
    golden.check_labels(captioner, [(tmp_path / "one.wav", best)] * 9 + [(tmp_path / "one.wav", "siren")], 0.9)
    fails(golden.check_labels, captioner, [(tmp_path / "one.wav", best), (tmp_path / "one.wav", "siren")], 0.9)


def test_answers_of_an_audio_language_model_are_compared(tmp_path: Path) -> None:
    captioner = AudioLmCaptioner(model=str(make_qwen2_audio(tmp_path / "m")), questions=["What is it?"], **PLACE)
    audio = sound(rate=16_000)
    answer = captioner.caption([AudioWindow(audio, 0.0, 1.0)])[0][0].text
    golden.check_answer(captioner, audio, 25, answer)
    fails(golden.check_answer, captioner, audio, 24, answer)
    fails(golden.check_answer, captioner, audio, 25, answer + " no")


def test_checkpoints_are_found_in_the_folder_first_and_then_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    reference, commit = "hf:org/tiny-sam@main", "a" * 40
    assert find_checkpoint(reference, None) is None
    assert find_checkpoint(reference, str(tmp_path)) is None
    cached = tmp_path / "cache" / "models--org--tiny-sam"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(make_sam(tmp_path / "tiny-sam"), cached / "snapshots" / commit)
    assert find_checkpoint(reference, None) == reference
    assert find_checkpoint(reference, str(tmp_path)) == str(tmp_path / "tiny-sam")
