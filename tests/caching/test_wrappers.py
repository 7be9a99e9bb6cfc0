"""Cached stages, on the embedded models: which run again after a change, and that results stay the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openavs.caching.store import StageCache
from openavs.caching.wrappers import with_cache
from openavs.config import resources
from openavs.config.recipe import Recipe, load_recipe
from openavs.errors import InputError
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import BackendCache
from openavs.results.serialization import result_to_json
from openavs.structures.types import Clip, ClipResult
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.local_server import Answer, completion, phrases, refusal, serving
from tests.plugin_recipe import write_recipe

STAGES = ("captioner", "translator", "detector")


@pytest.fixture(scope="module")
def clip() -> Clip:
    parts = [Role("dog", (True, True, False)), Role("bell", (False, True, True))]
    return scene_to_clip(plan_scene(parts, scene_rng("test", 78, 0), 3), "dog-and-bell")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "stages"


class Counted:
    """A recipe's pipeline with a cache; `calls` are the forward passes of its models."""

    def __init__(self, held: BackendCache, folder: Path, *overrides: str, stages: tuple[str, ...] = STAGES) -> None:
        recipe = load_recipe("tiny", overrides)
        self.pipe = Pipeline.from_recipe(recipe, held)
        backends = {stage: getattr(self.pipe, stage) for stage in (*STAGES, "segmenter")}
        self.calls = dict.fromkeys(backends, 0)
        self.hooks = [b.model.register_forward_hook(self._count(stage)) for stage, b in backends.items()]
        # CLAP's towers are called one by one, never the whole model.
        audio = backends["captioner"].model.audio_model
        self.hooks.append(audio.register_forward_hook(self._count("captioner")))
        self.cache = with_cache(self.pipe, recipe, folder, stages)

    def _count(self, stage: str) -> Any:
        def hook(*_: Any) -> None:
            self.calls[stage] += 1

        return hook

    def __call__(self, clip: Clip) -> ClipResult:
        try:
            return self.pipe(clip)
        finally:
            for hook in self.hooks:
                hook.remove()

    @property
    def ran(self) -> set[str]:
        return {stage for stage, calls in self.calls.items() if calls}


def content(result: ClipResult) -> str:
    """All but the seconds and the recipe."""
    return json.dumps(result_to_json(replace(result, timings={}, recipe={})), sort_keys=True)


# ----------------------------------------------------------------------------------------- what runs after a change


def test_a_box_threshold_runs_no_audio_model_and_no_language_model(held: BackendCache, clip: Clip, cache: Path) -> None:
    first = Counted(held, cache)
    first(clip)
    assert first.ran == {"captioner", "translator", "detector", "segmenter"}
    again = Counted(held, cache, "filtering.box_threshold=0.5")
    again(clip)
    assert again.ran <= {"segmenter"}


def test_the_detector_is_not_cached_by_default(held: BackendCache, clip: Clip, cache: Path) -> None:
    Counted(held, cache, stages=("captioner", "translator"))(clip)
    again = Counted(held, cache, "filtering.box_threshold=0.5", stages=("captioner", "translator"))
    again(clip)
    assert again.ran - {"segmenter"} == {"detector"}


def test_a_prompt_runs_no_audio_model(held: BackendCache, clip: Clip, cache: Path, tmp_path: Path) -> None:
    Counted(held, cache)(clip)
    prompt = tmp_path / "mine.txt"
    prompt.write_text(resources.find("prompts", "tiny").read_text())
    Counted(held, cache, f"translator.prompt={prompt}")(clip)
    prompt.write_text(prompt.read_text() + "Be brief.\n")  # the same name, another text
    changed = Counted(held, cache, f"translator.prompt={prompt}")
    changed(clip)
    assert "translator" in changed.ran
    assert "captioner" not in changed.ran


@pytest.mark.parametrize("change", ["captioner.top_k=1", "captioner.threshold=0.3", "audio.window_seconds=0.5"])
def test_the_audio_model_runs_when_its_input_or_options_change(
    held: BackendCache, clip: Clip, cache: Path, change: str
) -> None:
    Counted(held, cache)(clip)
    changed = Counted(held, cache, change)
    changed(clip)
    assert "captioner" in changed.ran


def test_another_clip_is_another_key(held: BackendCache, clip: Clip, cache: Path) -> None:
    Counted(held, cache)(clip)
    assert clip.audio is not None
    other = Counted(held, cache)
    other(replace(clip, audio=replace(clip.audio, samples=clip.audio.samples * 0.5)))
    assert "captioner" in other.ran


def test_the_audio_model_runs_when_the_longer_sound_changes(held: BackendCache, clip: Clip, cache: Path) -> None:
    for context in ("null", "2", "3"):
        run = Counted(held, cache, f"audio.context_seconds={context}")
        run(clip)
        assert "captioner" in run.ran


# ------------------------------------------------------------------------------------------------- equal results


def test_results_do_not_depend_on_the_cache(held: BackendCache, clip: Clip, cache: Path) -> None:
    plain = Pipeline.from_recipe(load_recipe("tiny"), held)(clip)
    filling, filled = Counted(held, cache), Counted(held, cache)
    assert content(plain) == content(filling(clip)) == content(filled(clip))
    assert filled.cache.counts == {(stage, "hits"): 1 for stage in STAGES}


def test_weak_captions_are_weak_in_the_cache(held: BackendCache, clip: Clip, cache: Path) -> None:
    result = Counted(held, cache, "captioner.threshold=1")(clip)
    assert any(frame.weak for frame in result.frames) and not any(frame.captions for frame in result.frames)
    assert content(Counted(held, cache, "captioner.threshold=1")(clip)) == content(result)


@pytest.mark.parametrize("answer", ['[[["only a text"]]]', "[]"])  # rows too short, and too few
def test_answers_of_another_form_are_computed(held: BackendCache, clip: Clip, cache: Path, answer: str) -> None:
    """A whole file with the right hash, but not what the stage wrote."""
    plain = Counted(held, cache)(clip)
    store = StageCache(cache)
    for entry in store.entries():
        key = entry.path.parent.name + entry.path.name.partition("-")[2]
        store.put(entry.stage, key, f'{{"output": {answer}, "revisions": {{}}}}'.encode())
    again = Counted(held, cache)
    assert content(again(clip)) == content(plain)
    assert again.ran == {"captioner", "translator", "detector", "segmenter"}
    assert Counted(held, cache).cache.get("captioner", "0" * 64) is None


def test_a_stage_that_cannot_be_cached_and_one_that_is_copied(held: BackendCache, cache: Path) -> None:
    recipe = load_recipe("tiny")
    pipe = Pipeline.from_recipe(recipe, held)
    with pytest.raises(InputError, match="the segmenter cannot be cached; these can: captioner, translator, detector"):
        with_cache(pipe, recipe, cache, ("segmenter",))
    with_cache(pipe, recipe, cache, ("captioner",))
    assert copy(pipe.captioner).models == pipe.captioner.models  # type: ignore[attr-defined]


def test_other_methods_of_a_stage_are_passed_through(held: BackendCache, cache: Path) -> None:
    """A closed vocabulary is matched by the captioner's own text tower."""
    pipe = Counted(held, cache).pipe
    assert pipe.captioner.text_similarity(["dog"], ["dog", "bell"]).shape == (1, 2)
    assert set(pipe.models) == set(Pipeline.from_recipe(load_recipe("tiny"), held).models)


def test_stages_without_a_model_are_left_as_they_are(tmp_path: Path, cache: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    pipe = Pipeline.from_recipe(recipe)
    stages = pipe.captioner, pipe.translator
    with_cache(pipe, recipe, cache)
    assert (pipe.captioner, pipe.translator) == stages


# ------------------------------------------------------------------------------------------------------ servers


def at_server(url: str) -> Recipe:
    return load_recipe(
        "tiny", [f"translator={{use: openai, model: small, base_url: '{url}', max_retries: 0, max_reprompts: 0}}"]
    )


def ask(url: str, held: BackendCache, clip: Clip, cache: Path) -> ClipResult:
    recipe = at_server(url)
    pipe = Pipeline.from_recipe(recipe, held)
    with_cache(pipe, recipe, cache)
    return pipe(clip)


def test_fallback_answers_of_an_unreachable_server_are_not_cached(held: BackendCache, clip: Clip, cache: Path) -> None:
    answers: Iterator[Answer] = iter([refusal(503), phrases(["dog"], ["dog"], ["cat"])])
    with serving(lambda fields, number: next(answers)) as server:
        fallen = ask(server.url, held, clip, cache)
        assert fallen.frames[0].prompts[0].origin == "lexicon"
        answered = ask(server.url, held, clip, cache)
        assert [[p.phrase for p in frame.prompts] for frame in answered.frames] == [["dog"], ["dog"], ["cat"]]
        remembered = ask(server.url, held, clip, cache)
    assert len(server.requests) == 2
    assert content(remembered) == content(answered)
    # The third result made no request, and yet names the revision of the model.
    assert remembered.models["small"]["revision"] == "small-1"


def test_the_origin_of_each_frame_is_cached(held: BackendCache, clip: Clip, cache: Path) -> None:
    """The model leaves out the second run, which the lexicon then answers."""
    with serving(lambda fields, number: phrases(["hound"])) as server:
        results = [ask(server.url, held, clip, cache) for _ in range(2)]
    assert len(server.requests) == 1
    for result in results:
        origins = {prompt.phrase: prompt.origin for frame in result.frames for prompt in frame.prompts}
        assert origins.pop("hound") == "llm"
        assert set(origins.values()) == {"lexicon"}
        assert sum("which the language model left out" in warning for warning in result.warnings) == 1


def test_a_malformed_answer_is_cached_with_its_note(held: BackendCache, clip: Clip, cache: Path) -> None:
    """A malformed answer is cached; the recipe's `max_reprompts` set the number of retries."""
    with serving(lambda fields, number: completion("Woof!")) as server:
        first = ask(server.url, held, clip, cache)
        second = ask(server.url, held, clip, cache)
    assert len(server.requests) == 1
    assert second.warnings == first.warnings
    assert "the lexicon answered" in first.warnings[0]
