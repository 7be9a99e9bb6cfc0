"""`supervision.Detections`, if the package is installed (the tests do not require it, since it brings OpenCV)."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.exports.base import Categories
from openavs.exports.supervision import to_supervision
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import ClipResult


def test_without_the_package_one_sentence_says_how_to_get_it(
    results: list[ClipResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r'pip install "openavs\[supervision\]"'):
        to_supervision(results[0], 0)


def test_a_frame_becomes_detections(results: list[ClipResult]) -> None:
    sv = pytest.importorskip("supervision")
    detections = to_supervision(results[0], 2)
    segments = results[0].frames[2].segments
    assert isinstance(detections, sv.Detections) and len(detections) == 2
    assert np.array_equal(detections.mask, np.stack([rle_to_mask(s.mask) for s in segments]))
    assert detections.xyxy.tolist() == [list(s.box) for s in segments]
    assert detections.confidence.tolist() == pytest.approx([s.score for s in segments])
    assert detections.class_id.tolist() == [0, 1] and detections.tracker_id.tolist() == [7, 3]
    assert detections["class_name"].tolist() == ["dog", "bell"]
    assert detections[detections.confidence > 0.5].data["phrase"].tolist() == ["dog"]
    assert detections.area.tolist() == [s.mask.area for s in segments]  # supervision's own count of mask pixels


def test_an_empty_frame_and_a_clip_without_tracks(results: list[ClipResult]) -> None:
    pytest.importorskip("supervision")
    empty = to_supervision(results[0], 5)
    assert len(empty) == 0 and empty.mask.shape == (0, *results[0].size)
    assert to_supervision(results[1], 0).tracker_id is None


def test_class_ids_do_not_depend_on_the_frame(results: list[ClipResult]) -> None:
    pytest.importorskip("supervision")
    known = Categories(["bell", "dog"])
    assert to_supervision(results[0], 1, known).class_id.tolist() == [1]
    assert to_supervision(results[0], 0, known).class_id.tolist() == [1, 0]
