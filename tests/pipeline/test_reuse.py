"""Pictures that repeat are looked at once, and the result is that of looking at each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from openavs.pipeline.frames import FrameDeduplicator, FrameMemo, max_cell_difference
from openavs.pipeline.pipeline import Pipeline
from openavs.stages.trackers.iou import IouTracker
from openavs.structures.types import Clip, Detection, Frame, FrameResult, ImageArray
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.pipeline.test_pipeline import Counter

RNG = np.random.default_rng(5)


def picture(value: int = 0, size: tuple[int, int] = (64, 96)) -> ImageArray:
    return np.full((*size, 3), value, dtype=np.uint8)


def frames(images: Sequence[ImageArray]) -> Iterator[Frame]:
    return (Frame(i, float(i), image) for i, image in enumerate(images))


def of_the_first(images: Sequence[ImageArray], tolerance: float | None = 0.0) -> list[int]:
    """For each picture the place of the array that stands for it."""
    arrays = [frame.image for frame in FrameDeduplicator(tolerance).share(frames(images))]
    return [next(i for i, image in enumerate(images) if image is array) for array in arrays]


# ------------------------------------------------------------------------------------------------- what is the same


def test_the_same_bits_become_the_same_array() -> None:
    images = [picture(1), picture(1), picture(2), picture(1), picture(1)]
    assert of_the_first(images) == [0, 0, 2, 3, 3]
    assert of_the_first(images, None) == [0, 1, 2, 3, 4]


def test_one_level_of_one_pixel_is_another_picture() -> None:
    other = picture(1)
    other[63, 95, 2] += 1
    assert of_the_first([picture(1), other]) == [0, 1]
    assert of_the_first([picture(1), picture(1, (96, 64))]) == [0, 1]


def test_a_tolerance_counts_from_the_picture_that_was_looked_at() -> None:
    creeping = [picture(value) for value in (10, 11, 12, 13, 14)]
    assert of_the_first(creeping, 2.0) == [0, 0, 0, 3, 3]
    looked = FrameDeduplicator(2.0)
    assert len(list(looked.share(frames(creeping)))) == 5
    assert looked.near == 3


def test_change_is_that_of_the_cell_that_changed_most() -> None:
    """A thing the size of a cell counts for all it is; noise of the whole picture for its own mean."""
    still = picture(100, (320, 640))
    moved = still.copy()
    moved[100:110, 200:220] = 180
    assert max_cell_difference(still, moved) == 80.0
    assert np.abs(moved.astype(int) - still).mean() < 0.1  # over the whole it would be lost
    noisy = (still + RNG.normal(0, 2, still.shape)).round().astype(np.uint8)
    assert 1.3 < max_cell_difference(still, noisy) < 2.2
    assert np.abs(noisy.astype(int) - still).max() > 6  # of a single pixel it would be much


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (33, 31), (240, 135)])
def test_change_of_pictures_of_any_size(size: tuple[int, int]) -> None:
    assert max_cell_difference(picture(3, size), picture(3, size)) == 0.0
    assert max_cell_difference(picture(0, size), picture(255, size)) == 255.0
    assert max_cell_difference(picture(3, size), picture(3, (2, 2))) == 255.0


# ----------------------------------------------------------------------------------------------- inputs of stages


class Stage:
    """Finds a box with what it was given, and keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def detect(self, images: list[ImageArray], phrases: list[str]) -> list[list[Detection]]:
        self.calls.append([int(image[0, 0, 0]) for image in images])
        return [[box(int(image[0, 0, 0]), own)] for image, own in zip(images, phrases, strict=True)]


def box(image: int, phrase: str) -> Detection:
    return Detection((0.0, 0.0, 1.0, 1.0), f"{image} {phrase}", 1.0)


def test_a_stage_runs_once_per_array_and_question() -> None:
    stage, answers = Stage(), FrameMemo()
    one, two = picture(1), picture(2)
    answers.begin([one, one, two])
    assert answers.call("detect", stage, ["a", "a", "a"]) == [[box(1, "a")], [box(1, "a")], [box(2, "a")]]
    answers.begin([two, two, one])
    assert answers.call("detect", stage, ["a", "b", "a"]) == [[box(2, "a")], [box(2, "b")], [box(1, "a")]]
    assert stage.calls == [[1, 2], [2, 1]]  # the last picture's answer was cached, the first one's was not
    assert len(answers._last + answers._images) == 4


def test_without_repetition_a_call_is_what_it_was() -> None:
    stage, answers = Stage(), FrameMemo()
    images = [picture(i) for i in range(4)]
    answers.begin(images)
    answers.call("detect", stage, list("abcd"))
    assert stage.calls == [[0, 1, 2, 3]]


# --------------------------------------------------------------------------------------------------- in the pipeline


def still(times: Sequence[int], seconds: int = 6) -> Clip:
    """A scene in which a dog barks throughout and a bell in the second half; its pictures are those of some times."""
    halves = tuple(i >= seconds // 2 for i in range(seconds))
    parts = [Role("dog", (True,) * seconds), Role("bell", halves)]
    clip = scene_to_clip(plan_scene(parts, scene_rng("test", 77, 4), seconds), "still")
    images = {frame.index: frame.image for frame in clip.frames(None)}

    def source(wanted: frozenset[int] | None) -> Iterator[Frame]:
        for i, at in enumerate(times):
            if wanted is None or i in wanted:
                yield Frame(i, clip.times[i], images[at].copy())

    return replace(clip, frames=source)


def remade(tiny: Pipeline, **settings: Any) -> Pipeline:
    stages = (tiny.captioner, tiny.translator, tiny.detector, tiny.segmenter)
    return Pipeline(*stages, replace(tiny.settings, **settings))


def counted(pipe: Pipeline, clip: Clip) -> tuple[dict[str, int], tuple[FrameResult, ...]]:
    modules = {"detector": pipe.detector.model, "encoder": pipe.segmenter.model.vision_encoder}  # type: ignore[union-attr]
    with Counter(**modules) as calls:
        result = pipe(clip)
    assert result.warnings == ()
    return calls, result.frames


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_static_video_is_looked_at_once(tiny: Pipeline, batch: int) -> None:
    clip = still([0] * 6)
    every, plain = counted(remade(tiny, max_diff=None, batch_frames=batch), clip)
    once, same = counted(remade(tiny, batch_frames=batch), clip)
    assert same == plain
    assert every["detector"] == 6
    assert once["detector"] == 2  # another phrase sounds from the middle on: once for each set of phrases
    assert 1 <= once["encoder"] <= 2 < every["encoder"]  # with other boxes it is encoded again


def test_only_what_repeats_is_spared(tiny: Pipeline) -> None:
    clip = still([0, 1, 1, 3, 3, 5])
    every, plain = counted(remade(tiny, max_diff=None, batch_frames=2), clip)
    once, same = counted(remade(tiny, batch_frames=2), clip)
    assert same == plain
    assert (every["detector"], once["detector"]) == (6, 4)


def test_a_tracker_gets_the_same_segments(tiny: Pipeline) -> None:
    clip = still([0, 0, 0, 3, 3, 3])
    stages = (tiny.captioner, tiny.translator, tiny.detector, tiny.segmenter)
    pipes = [
        Pipeline(*stages, replace(tiny.settings, max_diff=tolerance), tracker=IouTracker()) for tolerance in (None, 0.0)
    ]
    (every, plain), (once, same) = (counted(pipe, clip) for pipe in pipes)
    assert same == plain
    assert {segment.track for frame in same for segment in frame.segments} >= {0}
    assert (every["detector"], once["detector"]) == (6, 2)


def test_a_tolerance_is_reported(tiny: Pipeline) -> None:
    calm = still([0] * 6)

    def trembling(wanted: frozenset[int] | None) -> Iterator[Frame]:
        for frame in calm.frames(wanted):
            yield replace(frame, image=np.minimum(frame.image, 254) + np.uint8(frame.index % 2))

    clip = replace(calm, frames=trembling)
    assert counted(remade(tiny), clip)[0]["detector"] == 6
    with Counter(detector=tiny.detector.model) as calls:  # type: ignore[union-attr]
        result = remade(tiny, max_diff=2.0)(clip)
    assert calls == {"detector": 2}  # once for each set of phrases
    assert result.warnings == ("3 of 6 frames had hardly changed and reuse the frame before them",)
