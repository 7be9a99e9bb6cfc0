"""`supervision.Detections` and annotators, if the package is installed (the tests do not require it)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.exports.base import Categories, run_items
from openavs.exports.registry import ExportOptions, export
from openavs.exports.supervision import STYLES, AnnotatorPainter, to_supervision
from openavs.media.clip import open_clip, probe
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import ClipResult, ImageArray
from openavs.visualization.colors import DISTINCT


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


GRAY: ImageArray = np.full((48, 64, 3), 128, dtype=np.uint8)


def test_every_style_draws_and_keeps_the_image_that_it_is_given(results: list[ClipResult]) -> None:
    pytest.importorskip("supervision")
    image = np.random.default_rng(0).integers(0, 255, GRAY.shape, dtype=np.uint8)
    given = image.copy()
    for style in STYLES:
        painter = AnnotatorPainter(results[0], [style])
        painted = [painter(time, image) for time in (0.5, 0.7, 1.5)]
        assert all(one.shape == image.shape and one.dtype == np.uint8 for one in painted)
        # a trace is longer than a point only if its object moves
        assert style == "trace" or any((one != image).any() for one in painted), style
        assert (image == given).all()


def test_masks_have_the_colors_of_the_usual_overlay(results: list[ClipResult]) -> None:
    pytest.importorskip("supervision")
    painted = AnnotatorPainter(results[0], ["mask"])(0.5, GRAY)
    for segment, color in zip(results[0].frames[0].segments, DISTINCT, strict=False):
        inside = painted[rle_to_mask(segment.mask)].astype(float)
        assert np.abs(inside - (64 + np.array(color) / 2)).max() <= 2
    assert (painted[0, 0] == 128).all()


def test_heat_is_kept_over_time_and_starts_again_with_the_video(results: list[ClipResult]) -> None:
    pytest.importorskip("supervision")
    painter = AnnotatorPainter(results[0], ["heat-map"])
    first = painter(0.5, GRAY)
    assert (painter(5.5, GRAY) != GRAY).any()  # nothing is found at this time
    assert (painter(0.5, GRAY) == first).all()


def test_trace_needs_tracks(results: list[ClipResult]) -> None:
    pytest.importorskip("supervision")
    with pytest.raises(InputError, match="two has none; segment it with --track"):
        AnnotatorPainter(results[1], ["trace"])


def test_an_overlay_with_styles_is_a_video_with_sound(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("supervision")
    options = ExportOptions(Categories(), styles=("mask", "label"))
    export("overlay", run_items(run, ["one"]), tmp_path / "out", options)
    path = tmp_path / "out" / "one.mp4"
    assert probe(path).audio_codec is not None
    shown, usual = (
        next(iter(open_clip(file).frames(frozenset({0})))).image.astype(int)
        for file in (path, run / "clips" / "one" / "overlay.mp4")
    )
    assert np.abs(shown - usual).mean() > 1
