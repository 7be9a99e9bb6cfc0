"""The embedded Grounding DINO on held-out scenes, with the filtering of the recipe `tiny`."""

from __future__ import annotations

import numpy as np
import pytest

from openavs.config.recipe import PipelineConfig, load_recipe, pipeline_config
from openavs.pipeline.filtering import filter_detections
from openavs.stages.detectors.grounding_dino import GroundingDinoDetector
from openavs.structures.masks import iou
from openavs.structures.types import Box, Prompt
from openavs.synthetic.categories import KINDS
from openavs.synthetic.scenes import Scene, sample_scene
from scripts.train_tiny.image_data import LabeledImage


@pytest.fixture(scope="module")
def detector() -> GroundingDinoDetector:
    return GroundingDinoDetector(model="openavs:tiny/grounding-dino", device="cpu")


@pytest.fixture(scope="module")
def rules() -> PipelineConfig:
    return pipeline_config(load_recipe("tiny"))


def found_and_true_boxes(
    detector: GroundingDinoDetector, rules: PipelineConfig, scene: Scene, phrase: str
) -> tuple[list[Box], list[Box]]:
    """Return the kept boxes of a phrase in a picture of a scene, and the boxes of its visible objects."""
    image, owners = scene.picture(0.5)
    found, _ = filter_detections(detector.detect([image], [[phrase]])[0], [Prompt(phrase)], rules)
    kinds = tuple([kind.name for kind in KINDS].index(actor.kind) for actor in scene.actors)
    boxes = LabeledImage(image, owners, kinds).boxes()
    wanted = [actor.kind == phrase and not np.isnan(box[0]) for actor, box in zip(scene.actors, boxes, strict=True)]
    x0, y0, x1, y1 = boxes[wanted].T.tolist()
    return [box.box for box in found], list(zip(x0, y0, x1, y1, strict=True))


def test_detector_finds_all_objects_of_a_kind(detector: GroundingDinoDetector, rules: PipelineConfig) -> None:
    right = total = extra = whole = 0
    scenes = [sample_scene("twins", "test", 940, index).scene for index in range(40)]
    for scene in scenes:
        kinds = [actor.kind for actor in scene.actors]
        found, true = found_and_true_boxes(detector, rules, scene, max(kinds, key=kinds.count))
        hits = sum(any(iou(box, one) > 0.5 for one in found) for box in true)
        right, total, extra = right + hits, total + len(true), extra + len(found) - hits
        whole += hits == len(true)
    assert total > 85
    assert right >= 0.8 * total and whole >= 0.65 * len(scenes)
    assert extra <= 0.2 * len(scenes)


def test_silent_objects_of_other_kinds_rarely_get_a_box(detector: GroundingDinoDetector, rules: PipelineConfig) -> None:
    scenes = [sample_scene("s4", "test", 940, index).scene for index in range(60)]
    wrong = found = 0
    for scene in scenes:
        source = next(actor.kind for actor in scene.actors if any(actor.on))
        boxes, (true,) = found_and_true_boxes(detector, rules, scene, source)
        found += any(iou(box, true) > 0.5 for box in boxes)
        wrong += any(iou(box, true) <= 0.5 for box in boxes)
    assert found >= 0.88 * len(scenes) and wrong <= 0.1 * len(scenes)
