"""One clip through the pipeline with its progress; models and answers are reused."""

from __future__ import annotations

import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError
from openavs.results.serialization import read_result
from openavs.stages.captioners.clap import ClapCaptioner
from openavs.stages.detectors.grounding_dino import GroundingDinoDetector
from openavs.stages.segmenters.sam import SamSegmenter
from openavs.stages.translators.llm import LlmTranslator
from openavs.structures.types import Caption, ImageArray
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import sample_scene
from openavs.web import SegmentRequest
from openavs.web.inference import (
    InferenceProgress,
    ModelCache,
    command_text,
    distinct_captions,
    recipe_options,
    run_request,
    stream_latest,
)
from tests.media_files import gray, make_media, tone
from tests.web.conftest import CONFIG


def test_a_run_reports_its_stages_and_ends_with_the_result(models: ModelCache, scene: Path) -> None:
    states = list(run_request(SegmentRequest(scene), models, CONFIG))
    last = states[-1]
    assert last.result is not None
    assert all(state.result is None for state in states[:-1])
    assert {stage: done == total for stage, (done, total) in last.steps.items()} == dict.fromkeys(
        ("load", "caption", "translate", "localize"), True
    )
    assert last.captions[0].text in {caption.text for frame in last.result.frames for caption in frame.captions}
    assert last.result.source == "scene.mp4"  # without its folder
    assert any(frame.segments for frame in last.result.frames)


def test_another_threshold_runs_no_model_but_the_segmenter(
    models: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "never_seen.mp4"
    write_clip(clip, sample_scene("clip", "test", 4, 0, size=(128, 176), seconds=5).scene)
    calls = {"caption": 0, "detect": 0}

    def counted(cls: type, name: str) -> None:
        real: Callable[..., Any] = getattr(cls, name)

        def counting(self: Any, *args: Any) -> Any:
            calls[name] += 1
            return real(self, *args)

        monkeypatch.setattr(cls, name, counting)

    counted(ClapCaptioner, "caption")
    counted(GroundingDinoDetector, "detect")
    first = list(run_request(SegmentRequest(clip, threshold=0.9), models, CONFIG))[-1]
    assert calls == {"caption": 1, "detect": 1}
    assert first.cached == ()
    again = list(run_request(SegmentRequest(clip, threshold=0.1), models, CONFIG))[-1]
    assert calls == {"caption": 1, "detect": 1}
    assert again.cached == ("captioner", "translator", "detector")
    assert first.result is not None and again.result is not None
    assert not any(frame.segments for frame in first.result.frames)
    assert "below threshold" in {d.reason for frame in first.result.frames for d in frame.rejected}
    assert any(frame.segments for frame in again.result.frames)
    assert again.result.recipe["filtering"]["box_threshold"] == 0.1


def test_other_prompts_run_no_captioner_translator_or_image_encoder(
    models: ModelCache, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, encoded = SamSegmenter._encode, []

    def counting(self: SamSegmenter, images: Sequence[ImageArray]) -> list[Any]:
        encoded.extend(image.tobytes() for image in images)
        return encode(self, images)

    monkeypatch.setattr(SamSegmenter, "_encode", counting)
    first = list(run_request(SegmentRequest(scene), models, CONFIG))[-1].result
    assert first is not None
    proposed = list(dict.fromkeys(prompt.phrase for frame in first.frames for prompt in frame.prompts))
    for cls, name in ((ClapCaptioner, "caption"), (LlmTranslator, "translate")):
        monkeypatch.setattr(cls, name, lambda *_: pytest.fail("computed again"))
    request = SegmentRequest(scene).with_prompts([*proposed[1:], "train"], proposed)
    assert (request.add, request.remove) == (("train",), (proposed[0],))
    again = list(run_request(request, models, CONFIG))[-1]
    assert again.cached == ("captioner", "translator") and again.result is not None
    assert len(encoded) == len(set(encoded))  # each image once
    searched = {prompt.phrase for frame in again.result.frames for prompt in frame.prompts}
    assert searched == {*proposed[1:], "train"}


def test_the_command_line_gives_the_result_of_the_page(
    models: ModelCache, scene: Path, tmp_path: Path, openavs: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SegmentRequest(scene, vocabulary=("dog", "drum"), threshold=0.2, add=("train",))
    shown = list(run_request(request, models, CONFIG))[-1].result
    monkeypatch.chdir(scene.parent)
    command, *words = shlex.split(command_text(request, models.option("tiny")))
    assert openavs(*words, "--out", tmp_path / "out").code == 0 and command == "openavs"
    assert shown is not None and read_result(tmp_path / "out", "scene").frames == shown.frames
    config = replace(CONFIG, overrides=("filtering.nms_iou=0.5",), device="cpu")
    image = SegmentRequest(Path("/x/-a b.png"), Path("/x/b.wav"), threshold=0.16)
    assert command_text(image, recipe_options(config)["tiny"]) == (
        "openavs segment './-a b.png' --audio ./b.wav --pipeline tiny filtering.nms_iou=0.5 device=cpu"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the decoder process exists on Linux only")
@pytest.mark.faults
def test_a_clip_that_crashes_the_decoder_process_is_an_input_error(
    models: ModelCache, scene: Path, tmp_path: Path
) -> None:
    deadly = make_media(tmp_path / "deadly.mov", [gray(0)], codec="jpeg2000", pix_fmt="rgb24", sound=tone(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(
            InputError, match=r"deadly\.mov \(jpeg2000\) ends the process that decodes it; it is damaged"
        ):
            list(run_request(SegmentRequest(deadly), models, CONFIG))
        assert list(run_request(SegmentRequest(scene), models, CONFIG))[-1].result is not None


def test_a_recipe_is_loaded_once(models: ModelCache) -> None:
    with models.pipeline("tiny") as (one, _), pytest.raises(InputError, match="unknown recipe 'big'; this page offers"):
        models.option("big")
    with models.pipeline("tiny", ["filtering.box_threshold=0.5"]) as (two, _):
        assert two.settings.box_threshold == 0.5
    assert one.segmenter is two.segmenter  # loaded once
    assert models.loaded == ("tiny",)


def test_a_stopped_run_has_no_result(models: ModelCache, scene: Path) -> None:
    assert list(run_request(SegmentRequest(scene), models, CONFIG, lambda: True)) == []
    assert list(run_request(SegmentRequest(scene), models, CONFIG))[-1].result is not None  # the models are free again


def test_an_error_of_a_run_is_raised_in_the_caller(models: ModelCache, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(InputError, match=r"^broken.mp4 "):
        list(run_request(SegmentRequest(tmp_path / "broken.mp4"), models, CONFIG))


def test_the_newest_values_are_streamed_and_always_the_last() -> None:
    def count(report: Callable[[int], None]) -> None:
        for number in range(1000):
            report(number)

    seen = list(stream_latest(count))
    assert seen[-1] == 999
    assert len(seen) < 1000
    assert seen == sorted(seen)


def test_a_closed_stream_ends_its_work() -> None:
    ended = threading.Event()

    def forever(report: Callable[[int], None]) -> None:
        try:
            while True:
                report(1)
        finally:
            ended.set()

    values = stream_latest(forever)
    assert next(values) == 1
    values.close()  # type: ignore[attr-defined]
    assert ended.wait(5)


def test_distinct_captions_have_their_highest_score() -> None:
    captions = [(Caption("dog", 0.2, 0, 1), Caption("bell", 0.5, 0, 1)), None, (Caption("dog", 0.9, 2, 3),)]
    assert [(c.text, c.score) for c in distinct_captions(captions)] == [("dog", 0.9), ("bell", 0.5)]
    assert InferenceProgress().at("localize", 1, 3).steps == {"localize": (1, 3)}
