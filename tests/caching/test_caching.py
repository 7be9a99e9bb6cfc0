"""Stages that remember, on the embedded models: what is run again after which change, and that nobody can tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openavs.caching.fingerprint import folder_digest, stage_fingerprint
from openavs.caching.store import StageCache
from openavs.caching.wrappers import with_cache
from openavs.config import resources
from openavs.config.recipe import Recipe, load_recipe
from openavs.errors import InputError
from openavs.models.device import resolve_device
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import BackendCache, build_backends, check_backends
from openavs.results.serialization import segmentation_to_json
from openavs.structures.types import Clip, ClipResult
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.plugin_recipe import write_recipe
from tests.stages.translators.local_server import Answer, completion, phrases, refusal, serving

STAGES = ("captioner", "translator", "detector")


@pytest.fixture(scope="module")
def held() -> BackendCache:
    """The embedded models, loaded once for all recipes that share them."""
    return {}


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
    return json.dumps(segmentation_to_json(replace(result, timings={}, recipe={})), sort_keys=True)


# ----------------------------------------------------------------------------------------- what runs after a change


def test_a_box_threshold_runs_no_audio_model_and_no_language_model(held: BackendCache, clip: Clip, cache: Path) -> None:
    first = Counted(held, cache)
    first(clip)
    assert first.ran == {"captioner", "translator", "detector", "segmenter"}
    again = Counted(held, cache, "filtering.box_threshold=0.5")
    again(clip)
    assert again.ran <= {"segmenter"}


def test_by_default_pictures_are_looked_at_anew(held: BackendCache, clip: Clip, cache: Path) -> None:
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
def test_the_audio_model_runs_when_what_it_hears_or_how_changes(
    held: BackendCache, clip: Clip, cache: Path, change: str
) -> None:
    Counted(held, cache)(clip)
    changed = Counted(held, cache, change)
    changed(clip)
    assert "captioner" in changed.ran


def test_another_clip_is_another_question(held: BackendCache, clip: Clip, cache: Path) -> None:
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


# --------------------------------------------------------------------------------------------- nobody can tell


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


def test_what_else_a_stage_can_do_is_still_there(held: BackendCache, cache: Path) -> None:
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
    # Nobody was asked the third time, and yet the result says which model it was that answered.
    assert remembered.models["small"]["revision"] == "small-1"


def test_who_answered_for_each_frame_is_kept(held: BackendCache, clip: Clip, cache: Path) -> None:
    """The model leaves out the second run, which the lexicon then answers."""
    with serving(lambda fields, number: phrases(["hound"])) as server:
        results = [ask(server.url, held, clip, cache) for _ in range(2)]
    assert len(server.requests) == 1
    for result in results:
        origins = {prompt.phrase: prompt.origin for frame in result.frames for prompt in frame.prompts}
        assert origins.pop("hound") == "llm"
        assert set(origins.values()) == {"lexicon"}
        assert sum("which the language model left out" in warning for warning in result.warnings) == 1


def test_an_answer_that_cannot_be_used_is_kept_with_its_note(held: BackendCache, clip: Clip, cache: Path) -> None:
    """The model was asked and babbled: asking it again is what the recipe's `max_reprompts` are for."""
    with serving(lambda fields, number: completion("Woof!")) as server:
        first = ask(server.url, held, clip, cache)
        second = ask(server.url, held, clip, cache)
    assert len(server.requests) == 1
    assert second.warnings == first.warnings
    assert "the lexicon answered" in first.warnings[0]


# --------------------------------------------------------------------------------------------- fingerprints


def fingerprint(held: BackendCache, *overrides: str, stage: str = "captioner") -> str:
    recipe = load_recipe("tiny", overrides)
    return stage_fingerprint(getattr(build_backends(recipe, held), stage), *check_backends(recipe)[stage])


def test_a_fingerprint_changes_with_what_an_answer_depends_on(held: BackendCache) -> None:
    usual = fingerprint(held)
    assert fingerprint(held, "offline=true", "filtering.box_threshold=0.9", "translator.max_reprompts=0") == usual
    changes = ("captioner.top_k=1", "captioner.batch_size=2", "captioner.vocabulary=[dog, cat]")
    assert len({usual, *(fingerprint(held, change) for change in changes)}) == 4
    assert fingerprint(held, stage="translator") != fingerprint(held, "translator.prompt=default", stage="translator")


@pytest.mark.parametrize("stage", STAGES)
def test_floats_depend_on_the_number_of_threads(held: BackendCache, stage: str) -> None:
    usual, threads = fingerprint(held, stage=stage), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert fingerprint(held, stage=stage) != usual
    finally:
        torch.set_num_threads(threads)


def test_the_same_weights_elsewhere_are_the_same_and_other_weights_under_the_name_are_not(
    held: BackendCache, tmp_path: Path
) -> None:
    embedded = Path(build_backends(load_recipe("tiny"), held).captioner.models["openavs:tiny/clap"]["path"])
    copy = tmp_path / "clap"
    copy.mkdir()
    for file in embedded.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert folder_digest(copy) == folder_digest(embedded)
    assert fingerprint({}, f"captioner.model={copy}") == fingerprint(held)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert fingerprint({}, f"captioner.model={copy}") != fingerprint(held)


def test_large_files_are_told_apart_by_samples(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(20_000_000))
    before = folder_digest(tmp_path)
    file.write_bytes(bytes(10_000_000) + b"\1" * 10_000_000)
    assert folder_digest(tmp_path) != before


def test_an_edited_plug_in_is_another_stage(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path))

    def own() -> str:
        cls, options = check_backends(recipe)["captioner"]
        return stage_fingerprint(cls(**options), cls, options)

    before = own()
    source = tmp_path / "stages.py"
    source.write_text(source.read_text().replace('"dog", 0.9', '"dog", 0.8'))
    assert own() != before


def test_options_count_by_their_values_and_what_lies_at_their_paths(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("dog")

    def of(options: dict[str, Any]) -> str:
        return stage_fingerprint(object(), object, options)

    before = of({"files": {"words": str(tmp_path / "words.txt")}, "top": [1, 2]})
    assert before == of({"top": [1, 2], "files": {"words": str(tmp_path / "words.txt")}})
    assert before != of({"files": {"words": str(tmp_path / "words.txt")}, "top": [2, 1]})
    (tmp_path / "words.txt").write_text("cat")
    assert before != of({"files": {"words": str(tmp_path / "words.txt")}, "top": [1, 2]})


def test_answers_of_one_device_are_not_those_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Local:
        models = {"here": {"path": str(tmp_path)}}  # noqa: RUF012

    def on(device: str) -> str:
        resolve_device.cache_clear()
        return stage_fingerprint(Local(), Local, {"device": device})

    cpu, own = on("cpu"), on("a plug-in's own")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    names = iter(["one GPU", "another GPU"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: next(names))
    one, another = on("cuda:0"), on("cuda:0")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert len({cpu, own, one, another, on("mps")}) == 5
    resolve_device.cache_clear()
