"""Tracks through the whole pipeline: the embedded models on scenes of the synthetic world at two frames a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openavs.config.recipe import load_recipe
from openavs.errors import InputError
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import Registry
from openavs.results.serialization import mask_values
from openavs.stages.trackers.iou import IouTracker
from openavs.structures.types import Clip, ClipResult, Frame
from openavs.synthetic.scenes import Role, Scene, plan_scene, scene_rng
from tests.tiny_sams import make_sam2_video, make_sam3, make_sam3_video

FPS = 2.0


def dense_clip(scene: Scene, name: str) -> Clip:
    """A clip of the scene at `FPS` frames a second, made in memory."""
    times = tuple((i + 0.5) / FPS for i in range(round(scene.seconds * FPS)))

    def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
        for i, time in enumerate(times):
            if wanted is None or i in wanted:
                yield Frame(i, time, scene.picture(time)[0])

    return Clip(name, times, FPS, scene.size, frames, scene.soundtrack())


@pytest.fixture(scope="module")
def dog_then_bell_then_dog() -> Scene:
    dog = Role("dog", (True, False, False, True))
    bell = Role("bell", (False, True, False, False))
    return plan_scene([dog, bell], scene_rng("test", 77, 2), 4)


@pytest.fixture(scope="module")
def tracked(tiny: Pipeline) -> Pipeline:
    stages = (tiny.captioner, tiny.translator, tiny.detector, tiny.segmenter)
    return Pipeline(*stages, tiny.settings, tracker=IouTracker())


@pytest.fixture(scope="module")
def result(tracked: Pipeline, dog_then_bell_then_dog: Scene) -> ClipResult:
    return tracked(dense_clip(dog_then_bell_then_dog, "tracked"))


def test_every_segment_has_a_track_that_means_one_thing(result: ClipResult) -> None:
    meant: dict[int, set[str]] = {}
    for frame in result.frames:
        for segment in frame.segments:
            assert segment.track is not None
            meant.setdefault(segment.track, set()).add(segment.phrase)
    assert {"dog"} in meant.values() and {"bell"} in meant.values()
    assert all(len(phrases) == 1 for phrases in meant.values())


def test_a_thing_that_sounds_again_has_the_id_it_had(result: ClipResult) -> None:
    dogs = {s.track for f in result.frames for s in f.segments if s.phrase == "dog"}
    times = [f.time for f in result.frames for s in f.segments if s.phrase == "dog"]
    assert min(times) < 1 and max(times) > 3 and len(dogs) == 1


def test_frames_leave_complete_and_in_order(result: ClipResult, tiny: Pipeline, dog_then_bell_then_dog: Scene) -> None:
    alone = tiny(dense_clip(dog_then_bell_then_dog, "alone"))
    assert [frame.index for frame in result.frames] == list(range(8))
    for ours, theirs in zip(result.frames, alone.frames, strict=True):
        assert (ours.time, ours.silent, ours.captions, ours.prompts) == (
            theirs.time, theirs.silent, theirs.captions, theirs.prompts,
        )  # fmt: skip
        assert {s.phrase for s in ours.segments} >= {s.phrase for s in theirs.segments}
        assert all(s.track is None for s in theirs.segments)
    assert "track" in result.timings and "track" not in alone.timings


def test_masks_are_numbered_by_track(result: ClipResult) -> None:
    numbers = mask_values(result, "instance")
    by_track: dict[int | None, set[int]] = {}
    for frame, values in zip(result.frames, numbers, strict=True):
        for segment, value in zip(frame.segments, values, strict=True):
            by_track.setdefault(segment.track, set()).add(value)
    assert all(len(values) == 1 for values in by_track.values())


def test_a_recipe_may_name_a_tracker() -> None:
    recipe = load_recipe("tiny", ["tracker={use: iou, max_gap_seconds: 0.25}", "sample.fps=8"])
    pipe = Pipeline.from_recipe(recipe)
    assert isinstance(pipe.tracker, IouTracker) and pipe.tracker.max_gap_seconds == 0.25
    assert recipe.to_dict()["tracker"] == {"use": "iou", "max_gap_seconds": 0.25}
    assert load_recipe("tiny").to_dict()["tracker"] is None


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["detector=null"], "the recipe has no detector but SamSegmenter needs boxes"),
        (["segmenter=null"], "the recipe has no segmenter; add one"),
        (["segmenter=null", "tracker={use: iou}"], "IouTracker does not segment boxes"),
        (["tracker={use: iuo}"], "there is no tracker 'iuo'; did you mean 'iou'?"),
        (["tracker={use: iou, minimum: 1}"], "tracker 'iou' has no option 'minimum'"),
    ],
)
def test_stages_that_do_not_fit_are_refused_before_a_model_is_loaded(overrides: list[str], sentence: str) -> None:
    recipe = load_recipe("tiny", ["captioner.model=/no/such/folder", *overrides])
    with pytest.raises(InputError, match=sentence.replace("?", r"\?")):
        Pipeline.from_recipe(recipe)


def test_a_truncated_video_keeps_its_tracks_and_warns(tracked: Pipeline, dog_then_bell_then_dog: Scene) -> None:
    clip = dense_clip(dog_then_bell_then_dog, "cut")
    result = tracked(replace(clip, frames=lambda wanted: (f for f in clip.frames(wanted) if f.index < 2)))
    assert result.frames[0].segments[0].track == 0
    assert "could not be read" in result.warnings[0]


# --------------------------------------------------------- models that segment and track, with weights drawn at random


def with_tracker(tiny: Pipeline, tracker: Any, *, detector: bool) -> Pipeline:
    """The tiny recipe with a tracker in the place of its segmenter, or also of its detector."""
    found = tiny.detector if detector else None
    # A random SAM 3 is never sure of anything.
    settings = tiny.settings if detector else replace(tiny.settings, box_threshold=0.0, max_boxes=3)
    return Pipeline(tiny.captioner, tiny.translator, found, None, settings, tracker=tracker)


@pytest.mark.parametrize("kind", ["sam2-video", "sam3-video"])
def test_a_tracker_that_segments_encodes_each_sounding_frame_once(tiny: Pipeline, tmp_path: Path, kind: str) -> None:
    make = make_sam2_video if kind == "sam2-video" else make_sam3_video
    options = {"model": str(make(tmp_path / "model")), "keyframe_interval": 3}
    tracker = Registry("tracker").build(kind, options)
    encoded: list[int] = []
    forward = tracker.model.vision_encoder.forward

    def counting(pixels: Any, **rest: Any) -> Any:
        encoded.append(len(pixels))
        return forward(pixels, **rest)

    tracker.model.vision_encoder.forward = counting
    dog = Role("dog", (True, True, True, False))
    clip = dense_clip(plan_scene([dog], scene_rng("test", 77, 3), 4), kind)
    result = with_tracker(tiny, tracker, detector=kind == "sam2-video")(clip)
    sounding = [frame for frame in result.frames if frame.prompts]
    assert sum(encoded) == len(sounding) < len(result.frames)
    assert sounding[0].segments and all(s.track is not None for frame in sounding for s in frame.segments)
    assert set(result.models) >= {str(tmp_path / "model")}


def test_tracks_do_not_depend_on_the_batch(tiny: Pipeline, tmp_path: Path) -> None:
    """Of the frames of a batch none may be a key frame: then no model but the tracker's looks at them."""
    options = {"model": str(make_sam2_video(tmp_path / "model")), "keyframe_interval": 3}
    clip = dense_clip(plan_scene([Role("dog", (True, True))], scene_rng("test", 77, 3), 2), "small batches")
    usual = with_tracker(tiny, Registry("tracker").build("sam2-video", options), detector=True)
    one_by_one = with_tracker(tiny, Registry("tracker").build("sam2-video", options), detector=True)
    one_by_one.settings = replace(usual.settings, batch_frames=1)
    assert [[(s.phrase, s.track) for s in frame.segments] for frame in one_by_one(clip).frames] == [
        [(s.phrase, s.track) for s in frame.segments] for frame in usual(clip).frames
    ]


def test_sam3_needs_no_detector(tiny: Pipeline, tmp_path: Path) -> None:
    segmenter = Registry("segmenter").build("sam3", {"model": str(make_sam3(tmp_path / "model")), "floor": 0.0})
    settings = replace(tiny.settings, box_threshold=0.0, max_boxes=3, max_per_phrase=None)
    pipe = Pipeline(tiny.captioner, tiny.translator, None, segmenter, settings)
    clip = dense_clip(plan_scene([Role("dog", (True,))], scene_rng("test", 77, 3), 1), "sam3")
    result = pipe(clip)
    assert "detect" not in result.timings
    for frame in result.frames:
        assert 1 <= len(frame.segments) <= 3 and {s.phrase for s in frame.segments} == {"dog"}
        scores = [s.score for s in frame.segments]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["segmenter={use: sam3, model: /no}"], "Sam3Segmenter does not segment boxes, and the recipe has a detector"),
        (["segmenter=null", "tracker={use: sam3-video, model: /no}"], "write 'detector: null'"),
    ],
)
def test_a_model_that_finds_phrases_wants_no_boxes(overrides: list[str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Pipeline.from_recipe(load_recipe("tiny", overrides))
