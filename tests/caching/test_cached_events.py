"""A cached event captioner gives the same events without its model, in a small entry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.caching.build import StagedSchedule
from openavs.caching.store import StageCache
from openavs.caching.wrappers import CachedCaptioner, CachedEventCaptioner, with_cache
from openavs.config.recipe import Recipe, load_recipe
from openavs.pipeline.offload import lazy_stages
from openavs.pipeline.pipeline import Pipeline
from openavs.stages.captioners.base import gives_events
from openavs.structures.types import Clip, Event, Waveform
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.tiny_audio import make_pe_a_frame


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = make_pe_a_frame(tmp_path_factory.mktemp("pe") / "model")
    options = "vocabulary: [dog, bell, cat], threshold: 0.5, off_threshold: 0.5, min_seconds: 0"
    captioner = f"captioner={{use: pe-a-frame, model: {folder}, {options}}}"
    return load_recipe("tiny", [captioner, "translator={use: none}", "device=cpu"])


@pytest.fixture(scope="module")
def clip() -> Clip:
    parts = [Role("dog", (True, False)), Role("bell", (False, True))]
    return scene_to_clip(plan_scene(parts, scene_rng("test", 79, 0), 2), "dog-and-bell")


def cached(recipe: Recipe, folder: Path) -> tuple[Any, StageCache]:
    pipe = Pipeline.from_recipe(recipe)
    cache = with_cache(pipe, recipe, folder, ("captioner",))
    return pipe.captioner, cache


def test_events_come_from_the_cache_and_are_the_same(recipe: Recipe, clip: Clip, tmp_path: Path) -> None:
    assert clip.audio is not None
    first, cache = cached(recipe, tmp_path)
    events = first.events(clip.audio)
    assert events and cache.counts["captioner", "misses"] == 1
    again, cache = cached(recipe, tmp_path)
    again.backend.events = None  # would fail
    assert again.events(clip.audio) == events
    assert cache.counts["captioner", "hits"] == 1


def test_other_audio_is_another_key(recipe: Recipe, clip: Clip, tmp_path: Path) -> None:
    assert clip.audio is not None
    captioner, cache = cached(recipe, tmp_path)
    for audio in (clip.audio, replace(clip.audio, rate=8000), clip.audio.cut(0.0, 1.0)):
        captioner.events(audio)
    assert cache.counts["captioner", "misses"] == 3


def test_only_event_captioners_have_events(recipe: Recipe, tmp_path: Path) -> None:
    with_events, _ = cached(recipe, tmp_path)
    assert isinstance(with_events, CachedEventCaptioner) and gives_events(with_events)
    plain, _ = cached(load_recipe("tiny"), tmp_path)
    assert type(plain) is CachedCaptioner and not gives_events(plain)


class _Curves:
    """An event captioner with one long event."""

    models: dict[str, Any] = {"local": {"revision": "1"}}  # noqa: RUF012

    def __init__(self, curve: tuple[float, ...]) -> None:
        self.event = Event("dog", 0.0, len(curve) / 25, max(curve), 25.0, curve)

    def events(self, audio: Waveform) -> list[Event]:
        return [self.event]


@pytest.mark.parametrize("digits", [3, 17])
def test_curves_of_thousandths_take_three_bytes_a_value_and_others_are_exact(digits: int, tmp_path: Path) -> None:
    curve = tuple(round(float(v), digits) for v in np.random.default_rng(0).uniform(0, 1, 2500))
    audio = Waveform(np.zeros(16_000, np.float32), 16_000)
    wrapper = CachedEventCaptioner(_Curves(curve), StageCache(tmp_path), "fingerprint")
    assert wrapper.events(audio) == wrapper.events(audio) == [wrapper.backend.event]
    [entry] = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1000]
    assert (entry.stat().st_size < 3 * len(curve)) == (digits == 3)


def test_the_stage_by_stage_schedule_gives_the_same_result(recipe: Recipe, clip: Clip, tmp_path: Path) -> None:
    plain = Pipeline.from_recipe(recipe)(clip)
    staged = StagedSchedule(recipe, None, tmp_path / "stages")
    request = staged.run_captioner(clip)
    staged.run_translator([request])
    result = staged(clip)
    assert plain.events and result.events == plain.events
    assert [frame.prompts for frame in result.frames] == [frame.prompts for frame in plain.frames]
    assert staged.offload_manager.loads["captioner"] == 1


def test_a_lazy_backend_is_not_loaded_to_see_whether_it_gives_events(recipe: Recipe) -> None:
    for own, expected in ((recipe, True), (load_recipe("tiny"), False)):
        manager, stages = lazy_stages(own)
        assert gives_events(stages["captioner"][1]) == expected
        assert not manager.loads
