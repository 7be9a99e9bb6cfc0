"""The embedded ResNet: classification of held-out images, and initialization of students."""

from __future__ import annotations

import torch
from transformers import ResNetForImageClassification

from openavs.models.hub import load_pretrained, resolve
from openavs.training.config import load_training_recipe
from openavs.training.models.tpavi import Tpavi
from scripts.train_tiny import resnet


def test_resnet_classifies_held_out_images() -> None:
    model = load_pretrained(ResNetForImageClassification, resolve("openavs:tiny/resnet"), torch.float32, "cpu")
    assert resnet.evaluate(model, split="test", count=200)["all_right"] > 0.95


def test_tpavi_tiny_is_initialized_from_it() -> None:
    recipe = load_training_recipe("tpavi-tiny")
    student = Tpavi.build(recipe.model)
    student.initialize("backbone", recipe.init["backbone"])
    model = load_pretrained(ResNetForImageClassification, resolve("openavs:tiny/resnet"), torch.float32, "cpu")
    first, taken = model.resnet.state_dict(), student.backbone.state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in taken.items() if name in first)
    assert len(set(first) & set(taken)) > 40
