"""The algorithm, on the embedded models and scenes of the synthetic world whose answers are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from openavs.config.recipe import load_recipe, pipeline_config
from openavs.errors import InputError
from openavs.pipeline.frames import audio_window
from openavs.pipeline.pipeline import Pipeline, RunContext
from openavs.stages.translators.base import Request, Translation
from openavs.structures.masks import rle_to_mask, segments_to_mask
from openavs.structures.types import Caption, Clip, ClipResult, Frame, FrameResult
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Role, Scene, plan_scene, sample_scene, scene_rng


def scene(*parts: Role, seconds: int = 4, seed: int = 0) -> Scene:
    return plan_scene(list(parts), scene_rng("test", 77, seed), seconds)


@pytest.fixture(scope="module")
def dog_and_bell() -> Scene:
    """A dog, then silence, then a bell; a car stands by and says nothing."""
    dog = Role("dog", (True, True, False, False))
    bell = Role("bell", (False, False, False, True))
    return scene(dog, bell, Role("car", (False,) * 4))


@pytest.fixture(scope="module")
def result(tiny: Pipeline, dog_and_bell: Scene) -> ClipResult:
    return tiny(scene_to_clip(dog_and_bell, "dog-and-bell"))


class Counter:
    """Counts the forward passes of real modules while it is open."""

    def __init__(self, **modules: torch.nn.Module) -> None:
        self.calls = dict.fromkeys(modules, 0)
        self._hooks = [m.register_forward_hook(self._counting(name)) for name, m in modules.items()]

    def _counting(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.calls[name] += 1

        return hook

    def __enter__(self) -> dict[str, int]:
        return self.calls

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


# ------------------------------------------------------------------------------------ captions, prompts and segments


def test_each_frame_has_the_captions_of_its_window(result: ClipResult) -> None:
    assert [frame.silent for frame in result.frames] == [False, False, True, False]
    assert result.frames[0].captions[0].text == "dog barking"
    assert result.frames[3].captions[0].text == "bell ringing"
    assert (result.frames[3].captions[0].start, result.frames[3].captions[0].end) == (3.0, 4.0)


def test_a_frame_has_prompts_only_for_its_own_captions(result: ClipResult) -> None:
    assert [[prompt.phrase for prompt in frame.prompts] for frame in result.frames] == [["dog"], ["dog"], [], ["bell"]]
    prompt = result.frames[0].prompts[0]
    assert (prompt.origin, [caption.text for caption in prompt.captions]) == ("llm", ["dog barking"])


def test_a_frame_is_grounded_with_its_own_phrases_only(
    tiny: Pipeline, dog_and_bell: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a phrase of another frame, a box may answer that one, and the frame's own phrase would have none."""
    given: list[list[str]] = []
    detect = tiny.detector.detect  # type: ignore[union-attr]

    def watched(images: Any, phrases: Any) -> Any:
        given.extend(list(own) for own in phrases)
        return detect(images, phrases)

    watched.__name__ = "detect"
    monkeypatch.setattr(tiny.detector, "detect", watched)
    tiny(scene_to_clip(dog_and_bell, "own"))
    assert given == [["dog"], ["dog"], ["bell"]]


def test_names_that_detectors_know_are_prompts_labeled_as_the_class(tiny: Pipeline, dog_and_bell: Scene) -> None:
    settings = replace(tiny.settings, disambiguate=True, vocabulary=("mower", "dog"))
    pipe = Pipeline(tiny.captioner, tiny.translator, tiny.detector, tiny.segmenter, settings)
    clip = scene_to_clip(dog_and_bell, "own")
    asked = pipe.translate(clip, [(Caption("Lawn mower", 0.9, 0.0, 1.0),)], RunContext())
    assert [(prompt.phrase, prompt.label) for prompt in asked[0]] == [("lawn mower", "mower")]
    assert pipe.label("lawn mower")[0] == "mower"


def test_a_recipe_adds_and_removes_prompts(tiny: Pipeline, dog_and_bell: Scene) -> None:
    settings = pipeline_config(load_recipe("tiny", ["prompts.add=[' Car ', bell]", "prompts.remove=[Dog]"]))
    pipe = Pipeline(tiny.captioner, tiny.translator, tiny.detector, tiny.segmenter, settings)
    frames = pipe(scene_to_clip(dog_and_bell, "own")).frames
    names = [[(prompt.phrase, prompt.origin) for prompt in frame.prompts] for frame in frames]
    own = [("car", "recipe"), ("bell", "recipe")]
    assert names == [own, own, [], [("bell", frames[3].prompts[0].origin), own[0]]]  # none where it is silent
    assert frames[3].prompts[0].origin != "recipe"
    assert "car" in {segment.phrase for segment in frames[0].segments}


def test_captions_below_the_threshold_are_kept_apart_and_counted(tiny: Pipeline, dog_and_bell: Scene) -> None:
    class Unsure:
        models: ClassVar[dict[str, Any]] = {}

        def caption(self, windows: Any) -> list[list[Caption]]:
            return [[Caption("dog barking", 0.11, w.start, w.end, weak=True)] for w in windows]

    pipe = Pipeline(Unsure(), tiny.translator, tiny.detector, tiny.segmenter, tiny.settings)
    result = pipe(scene_to_clip(dog_and_bell, "weak"))
    assert "3 of 3 audible frames had no caption above the threshold (best: dog barking, 0.11)" in result.warnings
    first = result.frames[0]
    assert (first.captions, first.prompts) == ((), ()) and first.weak[0].text == "dog barking"


def test_what_sounds_is_segmented_and_what_is_silent_is_not(result: ClipResult, dog_and_bell: Scene) -> None:
    for frame in result.frames:
        truth = dog_and_bell.truth(frame.time)
        found = {segment.phrase: rle_to_mask(segment.mask) for segment in frame.segments}
        assert set(found) == set(truth)
        for kind, mask in truth.items():
            assert (found[kind] & mask).sum() / (found[kind] | mask).sum() > 0.6, (frame.index, kind)


def test_the_result_carries_its_recipe_models_and_timings(result: ClipResult) -> None:
    assert result.recipe["name"] == "tiny"
    assert set(result.models) == {
        "openavs:tiny/clap",
        "openavs:tiny/lm",
        "openavs:tiny/grounding-dino",
        "openavs:tiny/sam",
    }
    assert set(result.timings) == {"caption", "translate", "decode", "detect", "segment", "verify"}


def test_two_sources_at_once_are_both_found(tiny: Pipeline) -> None:
    """In at least half of these scenes: its 20 queries often all go to the plainer of two things."""
    pairs = [("dog", "train"), ("bell", "violin"), ("cat", "drum"), ("bird", "mower")]
    found = 0
    for seed, pair in enumerate(pairs):
        both = scene(*(Role(kind, (True,) * 3) for kind in pair), seconds=3, seed=10 + seed)
        frames = tiny(scene_to_clip(both, "both")).frames
        found += any({s.phrase for s in frame.segments} == set(pair) for frame in frames)
    assert found >= 2


def test_a_sound_from_off_the_screen_says_what_it_looked_for(tiny: Pipeline) -> None:
    hidden = scene(Role("dog", (True,) * 2, visible=False), Role("train", (False,) * 2), seconds=2, seed=2)
    for frame in tiny(scene_to_clip(hidden, "hidden")).frames:
        assert [prompt.phrase for prompt in frame.prompts] == ["dog"]
        assert frame.segments == ()
        assert frame.rejected[0].phrase == "dog"
        assert frame.rejected[0].reason in {"not found", "below threshold"}


# ------------------------------------------------------------------------------------------- how much work is done


def test_counted_work(tiny: Pipeline, dog_and_bell: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One audio batch, no text twice, one detector pass a frame for the joint caption, one image encoding a frame."""
    monkeypatch.setattr(tiny.detector, "phrases_per_caption", 8)
    tiny.captioner.caption([audio_window(dog_and_bell.soundtrack(), 0.5, 1.0, 1.0)])  # texts are embedded once, before
    modules = {
        "audio": tiny.captioner.model.audio_model,  # type: ignore[attr-defined]
        "detector": tiny.detector.model,  # type: ignore[attr-defined]
        "encoder": tiny.segmenter.model.vision_encoder,  # type: ignore[attr-defined]
        "decoder": tiny.segmenter.model.mask_decoder,  # type: ignore[attr-defined]
    }
    with Counter(**modules) as calls:
        result = tiny(scene_to_clip(dog_and_bell, "counted"))
    boxed = sum(bool(frame.segments) for frame in result.frames)
    assert boxed == 3
    assert tiny.captioner._text_encoder is None, "no text was embedded"  # type: ignore[attr-defined]
    assert calls == {"audio": 1, "detector": 3, "encoder": boxed, "decoder": boxed}
    assert result.frames[0].prompts
    assert result.warnings == ()


def test_one_request_holds_all_frames(tiny: Pipeline, dog_and_bell: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real translator, watched: one conversation for the clip, and none without captions."""
    questions: list[Any] = []
    chat = tiny.translator._chat  # type: ignore[attr-defined]
    monkeypatch.setattr(tiny.translator, "_chat", lambda asked: questions.extend(asked) or chat(asked))
    tiny(scene_to_clip(dog_and_bell, "one"))
    assert len(questions) == 1
    assert questions[0].messages[-1]["content"].count("dog barking") == 2
    tiny(scene_to_clip(scene(Role("dog", (False,) * 2), seconds=2), "silent"))
    assert len(questions) == 1


def test_silence_runs_no_model_and_says_so(tiny: Pipeline) -> None:
    silent = scene(Role("dog", (False,) * 3), seconds=3)
    with Counter(detector=tiny.detector.model, audio=tiny.captioner.model) as calls:  # type: ignore[attr-defined]
        result = tiny(scene_to_clip(silent, "silent"))
    assert calls == {"detector": 0, "audio": 0}
    assert all(frame.silent and not frame.segments for frame in result.frames)
    assert "silent" in result.warnings[0]


def test_only_frames_with_prompts_are_decoded(tiny: Pipeline, dog_and_bell: Scene) -> None:
    clip = scene_to_clip(dog_and_bell, "decoded")
    wanted: list[frozenset[int] | None] = []

    def frames(indices: frozenset[int] | None) -> Iterator[Frame]:
        wanted.append(indices)
        return clip.frames(indices)

    result = tiny(replace(clip, frames=frames))
    assert wanted == [frozenset({0, 1, 3})]
    assert [frame.index for frame in result.frames] == [0, 1, 2, 3]


# --------------------------------------------------------------------------- streaming, batches, what goes wrong


def test_results_do_not_depend_on_the_batch(tiny: Pipeline) -> None:
    clip = scene_to_clip(sample_scene("ms3", "test", 9, 3).scene, "batch")
    one, many = (
        Pipeline(
            tiny.captioner,
            tiny.translator,
            tiny.detector,
            tiny.segmenter,
            replace(tiny.settings, batch_frames=frames, batch_windows=windows),
        )(clip)
        for frames, windows in ((1, 1), (8, 64))
    )
    for a, b in zip(one.frames, many.frames, strict=True):
        assert [s.phrase for s in a.segments] == [s.phrase for s in b.segments]
        for s, t in zip(a.segments, b.segments, strict=True):
            assert s.score == pytest.approx(t.score, abs=1e-4)
            assert (rle_to_mask(s.mask) ^ rle_to_mask(t.mask)).sum() <= 2


@pytest.mark.parametrize("linked", [None, 0.14])
def test_frames_leave_before_the_last_is_decoded(tiny: Pipeline, linked: float | None) -> None:
    long = scene(Role("dog", (True,) * 20), seconds=20)
    clip = scene_to_clip(long, "long")
    decoded: list[int] = []

    def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
        for frame in clip.frames(wanted):
            decoded.append(frame.index)
            yield frame

    settings = replace(tiny.settings, batch_frames=2, linked_threshold=linked)
    small = Pipeline(tiny.captioner, tiny.translator, tiny.detector, tiny.segmenter, settings)
    batches = 3 + (linked is not None)  # the present one, the queue, the decoder's, and the next one to link with
    for result in small.stream(replace(clip, frames=frames)):
        assert decoded[-1] - result.index <= 2 * batches


def test_run_takes_clips_one_by_one(tiny: Pipeline, dog_and_bell: Scene) -> None:
    opened: list[int] = []

    def clips() -> Iterator[Clip]:
        for i in range(4):
            opened.append(i)
            yield scene_to_clip(dog_and_bell, str(i))

    results = tiny.run(clips())
    assert next(results).clip == "0"
    assert len(opened) <= 3
    assert [result.clip for result in results] == ["1", "2", "3"]


def test_no_sound_track_is_an_error_with_its_fix(tiny: Pipeline, dog_and_bell: Scene) -> None:
    mute = replace(scene_to_clip(dog_and_bell, "mute"), audio=None, source="mute.mp4")
    with pytest.raises(InputError, match=r"mute\.mp4 has no sound track; give its sound with --audio"):
        tiny(mute)


def test_a_truncated_video_keeps_its_first_part_and_warns(tiny: Pipeline, dog_and_bell: Scene) -> None:
    clip = scene_to_clip(dog_and_bell, "cut")
    result = tiny(replace(clip, frames=lambda wanted: (f for f in clip.frames(wanted) if f.index < 1)))
    assert [frame.index for frame in result.frames] == [0, 2]  # 1 and 3 were requested and never came
    assert result.warnings == ("2 of 4 frames could not be read; the file may be cut short",)


def test_a_closed_vocabulary_labels_and_filters(tiny: Pipeline, dog_and_bell: Scene) -> None:
    closed = Pipeline(
        tiny.captioner, tiny.translator, tiny.detector, tiny.segmenter, replace(tiny.settings, vocabulary=("dog",))
    )
    result = closed(scene_to_clip(dog_and_bell, "closed"))
    labels = [[(s.label, s.label_how) for s in frame.segments] for frame in result.frames]
    assert labels == [[("dog", "exact")], [("dog", "exact")], [], []]


def test_a_mask_that_is_too_small_is_not_a_segment(tiny: Pipeline, dog_and_bell: Scene) -> None:
    strict = Pipeline(
        tiny.captioner, tiny.translator, tiny.detector, tiny.segmenter, replace(tiny.settings, min_area=10**6)
    )
    frame = strict(scene_to_clip(dog_and_bell, "strict")).frames[0]
    assert frame.segments == ()
    assert [drop.reason for drop in frame.rejected] == ["empty mask"]


def test_progress_reports_every_stage(tiny: Pipeline, dog_and_bell: Scene) -> None:
    told: list[tuple[str, int, int]] = []
    tiny(scene_to_clip(dog_and_bell, "told"), lambda *step: told.append(step))
    assert {stage for stage, _, _ in told} == {"caption", "translate", "localize"}
    assert told[-1] == ("localize", 3, 3)


def test_stream_and_call_say_the_same(tiny: Pipeline, dog_and_bell: Scene, result: ClipResult) -> None:
    notes = RunContext()
    frames: list[FrameResult] = list(tiny.stream(scene_to_clip(dog_and_bell, "again"), context=notes))
    for one, two in zip(frames, result.frames, strict=True):
        masks = [segments_to_mask(frame.segments, result.size) for frame in (one, two)]
        assert np.array_equal(*masks)
    assert notes.seconds["detect"] > 0


# --------------------------------------------------------------------------------------------------------- expressions


def test_an_expression_is_the_only_prompt_without_a_translator_that_reads_it(
    tiny: Pipeline, dog_and_bell: Scene
) -> None:
    clip = replace(scene_to_clip(dog_and_bell, "refer"), expression="The bell.")
    found = tiny(clip)
    prompts = {(prompt.phrase, prompt.origin, prompt.captions) for frame in found.frames for prompt in frame.prompts}
    assert prompts == {("the bell", "expression", ())}
    assert all(frame.prompts and not frame.captions for frame in found.frames), "silent frames have it, too"


def test_a_translator_that_reads_expressions_gets_them_with_the_captions(tiny: Pipeline, dog_and_bell: Scene) -> None:
    requests: list[Request] = []

    class Referring:
        takes_expression = True

        def translate(self, given: list[Request]) -> list[Translation]:
            requests.extend(given)
            return [Translation(tuple(("dog",) if own else () for own in given[0].frames), "llm")]

    pipe = Pipeline(tiny.captioner, Referring(), tiny.detector, tiny.segmenter, tiny.settings)
    pipe(replace(scene_to_clip(dog_and_bell, "refer"), expression="the first one that sounds"))
    [request] = requests
    assert request.expression == "the first one that sounds"
    assert request.frames[0][0].text == "dog barking"
