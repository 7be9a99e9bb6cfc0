"""The embedded Mask2Former: instances of held-out images, and initialization of OV-AVSS."""

from __future__ import annotations

import torch
from transformers import Mask2FormerForUniversalSegmentation

from openavs.models.hub import load_pretrained, resolve
from openavs.synthetic.scenes import scene_rng
from openavs.training.base import Student
from openavs.training.config import load_training_recipe
from openavs.training.models.ov_avss.model import OvAvss
from scripts.train_tiny import mask2former

REF = "openavs:tiny/mask2former"


def embedded() -> Mask2FormerForUniversalSegmentation:
    return load_pretrained(Mask2FormerForUniversalSegmentation, resolve(REF), torch.float32, "cpu")


def test_it_finds_the_objects_of_held_out_images() -> None:
    figures = mask2former.evaluate(embedded(), split="test", count=60)
    assert figures["found"] > 0.8 and figures["iou"] > 0.75 and figures["false"] < 0.2


def test_images_show_base_categories_and_twins() -> None:
    images = [mask2former.sample_instances(scene_rng("train", 8, index), (96, 96)) for index in range(40)]
    assert {kind for item in images for kind in item.kinds} <= set(mask2former.BASE)
    assert {len(item.kinds) for item in images} == {1, 2, 3, 4, 5}
    assert any(len(set(item.kinds)) < len(item.kinds) for item in images)
    for item in images:
        target = mask2former.target_of(item)
        assert target.masks.shape[1:] == (1, 96, 96) and len(target.masks) <= len(item.kinds)
        assert target.masks.sum(0).max() <= 1  # every pixel shows one object


def test_ov_avss_tiny_starts_from_it() -> None:
    recipe = load_training_recipe("ov-avss-tiny")
    assert dict(recipe.init) == {"mask2former": REF}
    student: Student = OvAvss.build(recipe.model)
    student.initialize("mask2former", REF)
    given, own = embedded().state_dict(), student.state_dict()
    shared = [name for name in given if f"network.{name}" in own]
    assert len(shared) == len(given) - 3  # its head and the weights of its own loss
    assert all(torch.equal(given[name], own[f"network.{name}"]) for name in shared)
    assert torch.equal(own["network.sound_predictor.weight"], given["class_predictor.weight"])
