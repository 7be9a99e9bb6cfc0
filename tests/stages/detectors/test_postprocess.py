"""Batching, and conversion of scored boxes to detections, clipped and best first."""

from __future__ import annotations

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.stages.detectors.postprocess import best_first, boxes_to_detections, check_inputs, image_batches
from openavs.structures.types import Detection

BOX = (0.0, 0.0, 1.0, 1.0)


def test_only_equal_keys_share_a_batch() -> None:
    assert list(image_batches(["a", "b", "a", "a", "b"], 2)) == [[0, 2], [3], [1, 4]]
    assert list(image_batches([], 2)) == []


def test_boxes_become_pixels_inside_the_image() -> None:
    boxes = np.array([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5], [0.5, 0.95, 0.1, 0.1], [0.5, 0.5, 1, 1]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.1], np.float32)
    winners = np.array([1, 0, 0, 0])
    # the model saw 200 x 100 pixels of which the image is the upper half
    found = boxes_to_detections(boxes, scores, winners, ["cat", "dog"], (200.0, 100.0), (100, 100), floor=0.5)
    assert [(d.box, d.phrase) for d in found] == [((25, 50, 75, 100), "dog"), ((0, 0, 25, 50), "cat")]
    assert [d.score for d in found] == pytest.approx([0.9, 0.8])


def test_the_best_are_kept_and_each_phrases_best() -> None:
    scored = [("dog", 0.9), ("dog", 0.5), ("cat", 0.1), ("dog", 0.8), ("cat", 0.2)]
    kept = best_first([Detection(BOX, phrase, score) for phrase, score in scored], limit=2)
    assert [(d.phrase, d.score) for d in kept] == [("dog", 0.9), ("dog", 0.8), ("cat", 0.2)]


def test_malformed_images_are_refused() -> None:
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8 RGB"):
            check_inputs([wrong], [["dog"]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="1 images but 2 lists"):
        check_inputs([np.zeros((4, 4, 3), np.uint8)], [["dog"], ["cat"]])
