"""One clip through the pipeline, told step by step; a second time with another threshold it hears nothing anew."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError
from openavs.stages.captioners.clap import ClapCaptioner
from openavs.stages.detectors.grounding_dino import GroundingDinoDetector
from openavs.structures.types import Caption
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scene_sampling import sample_scene
from openavs.web.models import ModelCache
from openavs.web.running import InferenceProgress, best_heard, run, stream_latest
from openavs.web.wishes import SegmentRequest
from tests.media_files import grey, make_media, tone
from tests.web.conftest import SETTINGS


def test_a_run_tells_its_stages_and_ends_with_the_result(models: ModelCache, scene: Path) -> None:
    states = list(run(SegmentRequest(scene), models, SETTINGS))
    last = states[-1]
    assert last.result is not None
    assert all(state.result is None for state in states[:-1])
    assert {stage: done == total for stage, (done, total) in last.steps.items()} == dict.fromkeys(
        ("load", "caption", "translate", "localize"), True
    )
    assert last.captions[0].text in {caption.text for frame in last.result.frames for caption in frame.captions}
    assert last.result.source == "scene.mp4"  # and not where it lies
    assert any(frame.segments for frame in last.result.frames)


def test_another_threshold_reuses_what_was_heard_asked_and_boxed(
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
    first = list(run(SegmentRequest(clip, threshold=0.9), models, SETTINGS))[-1]
    assert calls == {"caption": 1, "detect": 1}
    assert first.reused == ()
    again = list(run(SegmentRequest(clip, threshold=0.1), models, SETTINGS))[-1]
    assert calls == {"caption": 1, "detect": 1}
    assert again.reused == ("captioner", "translator", "detector")
    assert first.result is not None and again.result is not None
    assert not any(frame.segments for frame in first.result.frames)
    assert "below threshold" in {d.reason for frame in first.result.frames for d in frame.rejected}
    assert any(frame.segments for frame in again.result.frames)
    assert again.result.recipe["filtering"]["box_threshold"] == 0.1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the trial in a child process")
@pytest.mark.faults
def test_a_clip_that_ends_the_child_process_costs_its_visitor_one_sentence(
    models: ModelCache, scene: Path, tmp_path: Path
) -> None:
    deadly = make_media(tmp_path / "deadly.mov", [grey(0)], codec="jpeg2000", pix_fmt="rgb24", sound=tone(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(
            InputError, match=r"deadly\.mov \(jpeg2000\) ends the process that decodes it; it is damaged"
        ):
            list(run(SegmentRequest(deadly), models, SETTINGS))
        assert list(run(SegmentRequest(scene), models, SETTINGS))[-1].result is not None


def test_one_recipe_beside_tiny_is_held(models: ModelCache) -> None:
    with models.using("tiny") as (one, _), pytest.raises(InputError, match="this page has no recipe 'big'; it has"):
        models.offer("big")
    with models.using("tiny", threshold=0.5) as (two, _):
        assert two.settings.box_threshold == 0.5
    assert one.segmenter is two.segmenter  # loaded once
    assert models.loaded == ("tiny",)


def test_whoever_asks_for_a_stop_gets_a_last_state_without_result(models: ModelCache, scene: Path) -> None:
    asked = threading.Event()
    asked.set()
    assert [state.result for state in run(SegmentRequest(scene), models, SETTINGS, asked.is_set)] == []
    assert list(run(SegmentRequest(scene), models, SETTINGS))[-1].result is not None  # the models are free again


def test_an_error_of_the_work_is_the_callers(models: ModelCache, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(InputError, match=r"^broken.mp4 "):
        list(run(SegmentRequest(tmp_path / "broken.mp4"), models, SETTINGS))


def test_only_the_newest_value_is_kept_and_the_last_one_always() -> None:
    def count(tell: Callable[[int], None]) -> None:
        for number in range(1000):
            tell(number)

    seen = list(stream_latest(count))
    assert seen[-1] == 999
    assert len(seen) < 1000
    assert seen == sorted(seen)


def test_work_that_nobody_follows_any_more_ends() -> None:
    ended = threading.Event()

    def forever(tell: Callable[[int], None]) -> None:
        try:
            while True:
                tell(1)
        finally:
            ended.set()

    values = stream_latest(forever)
    assert next(values) == 1
    values.close()  # type: ignore[attr-defined]
    assert ended.wait(5)


def test_of_every_text_the_surest_time() -> None:
    heard = [(Caption("dog", 0.2, 0, 1), Caption("bell", 0.5, 0, 1)), None, (Caption("dog", 0.9, 2, 3),)]
    assert [(c.text, c.score) for c in best_heard(heard)] == [("dog", 0.9), ("bell", 0.5)]
    assert InferenceProgress().at("localize", 1, 3).steps == {"localize": (1, 3)}
