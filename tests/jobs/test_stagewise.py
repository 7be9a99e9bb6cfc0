"""Stage by stage over a window of clips: the same bytes, models offloaded, one call for the captions of a window."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.caching.build import StagedSchedule
from openavs.config.recipe import load_recipe, recipe_from_dict
from openavs.errors import InvalidOutputError, ModelError
from openavs.jobs.checkpoint import ShardJournal, journal_path
from openavs.jobs.executors.base import ShardWorker
from openavs.jobs.job import ClipFinished, ShardSpec
from openavs.jobs.shard import run_shard
from openavs.media.encode import write_video
from openavs.models.device import memory_share
from openavs.pipeline.offload import lazy_stages
from openavs.stages.translators.base import Request
from openavs.structures.types import Clip
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import sample_scene
from tests.jobs.pool import planned, recipe, tree, videos

WEIGHTED = ("captioner", "translator", "detector", "segmenter")


def never() -> bool:
    return False


def worker(spec: ShardSpec, schedule: str, cache: Path | None = None, window: int = 256) -> ShardWorker:
    return ShardWorker(replace(spec.job, schedule=schedule, window=window, cache=cache))


def labeled(spec: ShardSpec, schedule: str, **options: Any) -> ShardWorker:
    made = worker(spec, schedule, **options)
    assert made.run(spec, on_clip=lambda done: None, stop=never) is not None
    return made


def results(out: Path) -> dict[str, str]:
    return {name: found for name, found in tree(out).items() if not name.startswith("work")}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five short videos of the synthetic world, one of them silent throughout."""
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(5):
        scene = sample_scene("ms3", "test", 40 + number, 2).scene
        sound = scene.soundtrack()
        if number == 3:
            sound = replace(sound, samples=np.zeros_like(sound.samples))
        pictures = [scene.picture((i + 0.5) / 4)[0] for i in range(8)]
        write_video(folder / f"s{number}.mp4", pictures, fps=4, audio=sound)
    return folder


@pytest.fixture
def spec(scenes: Path, tmp_path: Path) -> ShardSpec:
    return planned(scenes, "tiny", tmp_path / "out", shard_size=5)[2][0]  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------- with the embedded models


@pytest.fixture(scope="module")
def clip_by_clip(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("reference") / "out"
    reference = planned(scenes, "tiny", out, shard_size=5)[2][0]  # type: ignore[arg-type]
    labeled(reference, "per-clip")
    return results(out)


@pytest.mark.parametrize("window", [pytest.param(2, marks=pytest.mark.slow), 256])
def test_both_schedules_write_the_same_bytes(
    spec: ShardSpec, clip_by_clip: dict[str, Any], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one turn of the models for each window, and one call of the language model in it."""
    from openavs.stages.translators.llm import LlmTranslator

    calls: list[int] = []
    chat = LlmTranslator._chat

    def counting(self: Any, asked: Any) -> Any:
        calls.append(len(asked))
        return chat(self, asked)

    monkeypatch.setattr(LlmTranslator, "_chat", counting)
    staged = labeled(spec, "per-stage", window=window)
    assert results(spec.job.out) == clip_by_clip
    windows = -(-5 // window)
    assert isinstance(staged.pipeline, StagedSchedule)
    turns = staged.pipeline.offload_manager
    assert turns.most == 3  # detector, segmenter and verifier; never all five
    assert turns.loads["translator"] <= windows + 1  # once at the start, to see that it can be loaded
    assert turns.loads["detector"] <= windows + 1
    assert turns.loads["captioner"] == windows  # it was loaded last at the start, and runs first
    assert len(calls) <= windows
    assert sum(calls) <= 4  # no question of the silent one, none twice


def test_weak_captions_are_not_translated_with_offloading(tmp_path: Path) -> None:
    scene = sample_scene("ms3", "test", 40, 2).scene
    chain = StagedSchedule(load_recipe("tiny", ["captioner.threshold=1"]), None, tmp_path / "cache")
    assert not any(chain.run_captioner(scene_to_clip(scene, "scene")).frames)


@pytest.mark.parametrize("fault", [InvalidOutputError, ModelError])
def test_a_fault_of_the_translator_is_of_the_clip_that_has_it(
    fault: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openavs.stages.translators.llm import LlmTranslator

    def refuse(self: Any, requests: Any) -> Any:
        raise fault("no answer")

    clip = scene_to_clip(sample_scene("ms3", "test", 40, 2).scene, "scene")
    monkeypatch.setattr(LlmTranslator, "translate", refuse)
    chain = StagedSchedule(load_recipe("tiny"), None, tmp_path / "cache")
    request = chain.run_captioner(clip)
    if fault is InvalidOutputError:
        chain.run_translator([request])
    with pytest.raises(fault, match="no answer"):
        chain(clip)


def test_models_of_another_turn_are_gone() -> None:
    turns, _ = lazy_stages(load_recipe("tiny"))
    detector = turns.backend("detector")
    weights = weakref.ref(detector.model)
    segmenter = weakref.ref(turns.backend("segmenter").model)
    assert turns.backend("detector") is detector
    del detector
    turns.backend("captioner")
    gc.collect()
    assert (weights(), segmenter()) == (None, None)
    assert turns.loads == {"detector": 1, "segmenter": 1, "captioner": 1}


def test_a_deferred_stage_answers_from_the_cache_without_loading() -> None:
    turns, held = lazy_stages(load_recipe("tiny"))
    segmenter, captioner = held["segmenter"][1], held["captioner"][1]
    assert hasattr(segmenter, "segment")
    assert not hasattr(type(segmenter), "segment_phrases")
    assert hasattr(captioner, "text_similarity")
    assert turns.loads == {}
    assert set(segmenter.models) == {"openavs:tiny/sam"}
    turns.release()
    assert set(segmenter.models) == {"openavs:tiny/sam"}  # known from then on
    assert turns.loads == {"segmenter": 1}


def test_captions_and_prompts_are_taken_from_the_cache(spec: ShardSpec, tmp_path: Path) -> None:
    """A job with other boxes captions and translates nothing again, with either schedule of the first one."""
    labeled(spec, "per-stage", cache=tmp_path / "stages")
    again = planned(spec.job.root, "tiny", tmp_path / "again", overrides=("filtering.box_threshold=0.3",))[2][0]  # type: ignore[arg-type]
    second = labeled(again, "per-clip", cache=tmp_path / "stages")
    assert second.cache is not None
    assert [what for (_, what), count in second.cache.counts.items() if count] == ["hits"] * 2


# -------------------------------------------------------------------------------------------- with a plug-in's stages


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos(tmp_path_factory.mktemp("pool") / "videos", 4, white=(2,))


def staged(spec: ShardSpec, window: int = 3) -> StagedSchedule:
    job = spec.job
    return StagedSchedule(recipe_from_dict(dict(job.recipe), base=job.base), None, job.out / "work/stages", window)


def run(spec: ShardSpec, ahead: StagedSchedule, stop: Callable[[], bool] = never) -> Any:
    told: list[ClipFinished] = []
    mark = run_shard(spec, ahead, stop=stop, on_clip=told.append)
    return mark, [done.clip for done in told]


def test_a_clip_that_fails_is_a_row_in_both_schedules(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", detector={"use": "./stages.py:Faulty"})
    reference, spec = (planned(pool, made, tmp_path / name)[2][0] for name in ("clips", "stages"))
    expected = labeled(reference, "per-clip").run(reference, on_clip=lambda done: None, stop=never)
    mark, _ = run(spec, staged(spec))
    assert mark == expected
    assert mark["reasons"] == {"unexpected ZeroDivisionError": 1}


def test_an_error_of_the_captioner_is_reported_once_for_its_clip(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", captioner={"use": "./stages.py:Deaf"})
    with (tmp_path / "r/stages.py").open("a") as file:
        file.write("\n\nclass Deaf(Ear):\n    def caption(self, windows):\n        raise ZeroDivisionError('deaf')\n")
    spec = planned(pool, made, tmp_path / "out")[2][0]
    mark, _ = run(spec, staged(spec))
    assert mark["reasons"] == {"unexpected ZeroDivisionError": 4}


def test_it_stops_in_a_window_and_goes_on(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r")
    spec, whole = (planned(pool, made, tmp_path / name)[2][0] for name in ("out", "whole"))
    for stops_after in (1, 4, 5):
        left = iter([False] * stops_after)
        assert run(spec, staged(spec), lambda left=left: next(left, True))[0] is None  # type: ignore[misc]
    run(spec, staged(spec))
    run(whole, staged(whole))
    assert results(spec.job.out) == results(whole.job.out)


def test_a_stop_request_prevents_the_next_window(pool: Path, tmp_path: Path) -> None:
    spec = planned(pool, recipe(tmp_path / "r"), tmp_path / "out")[2][0]
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(len(asked) == 3)  # twice in captioning, once before the first clip is segmented
        return any(asked)

    assert run(spec, staged(spec, window=2), stop) == (None, ["v00"])
    assert asked == [False, False, False, True]


def test_a_window_is_captioned_and_translated_before_the_next(pool: Path, tmp_path: Path) -> None:
    spec = planned(pool, recipe(tmp_path / "r"), tmp_path / "out")[2][0]
    ahead = staged(spec, window=3)
    hear, ask = ahead.run_captioner, ahead.run_translator
    events: list[str | int] = []

    def told_hear(clip: Clip) -> Request:
        events.append(clip.id)
        return hear(clip)

    def told_ask(requests: Sequence[Request]) -> None:
        events.append(len(requests))
        ask(requests)

    ahead.run_captioner, ahead.run_translator = told_hear, told_ask  # type: ignore[method-assign]
    run(spec, ahead)
    assert events == ["v00", "v01", "v02", 3, "v03", 1]


def test_captioned_clips_are_not_blamed_for_a_crash(pool: Path, tmp_path: Path) -> None:
    """A worker that crashes in translation, or at another clip, does not count against them."""
    spec = planned(pool, recipe(tmp_path / "r"), tmp_path / "out")[2][0]
    ahead = staged(spec, window=4)
    begun: list[set[str]] = []
    ahead.run_translator = lambda requests: begun.append(ShardJournal.read(journal_path(spec.job.out, 0)).begun)  # type: ignore[method-assign]
    run(spec, ahead)
    assert begun == [set()]


# -------------------------------------------------------------------------------------------------- on the command line


def test_the_schedule_is_not_part_of_the_manifest(openavs: Any, pool: Path, tmp_path: Path) -> None:
    """A job that one schedule began is finished by the other."""
    made = recipe(tmp_path / "r")
    words = ("label", pool, "--pipeline", made, "--out", tmp_path / "out", "--workers", "1", "--json")
    first = openavs(*words, "--schedule", "per-stage", "--window", "2")
    assert first.code == 0
    assert first.json()["ok"] == 4
    again = openavs(*words, "--schedule", "per-clip")
    assert (again.code, again.json()["worked"]) == (0, 0)
    assert not (tmp_path / "out/work/stages").exists()


def test_workers_share_the_memory_of_their_device() -> None:
    assert memory_share(1, ()) == 1.0
    assert memory_share(4, ()) == 0.25
    assert memory_share(8, ("0", "1", "2", "3")) == 0.5
    assert memory_share(3, ("0", "1")) == 0.5
