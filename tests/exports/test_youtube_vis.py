"""YouTube-VIS JSON, read back by the reader of AVSBench-OV's annotations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openavs.evaluation.datasets.avsbench_ov import read_annotations
from openavs.evaluation.datasets.tables import CLASSES
from openavs.exports.avsbench import to_label_map
from openavs.exports.base import Categories, run_items
from openavs.exports.registry import ExportOptions, MaskCode, export
from openavs.exports.youtube_vis import to_youtube_vis
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import ClipResult
from tests.exports.conftest import by_hand, disc, pair, ring, segment


def test_our_reader_gives_the_label_maps_back(run: Path, tmp_path: Path) -> None:
    export("youtube-vis", run_items(run), tmp_path / "ytvis.json")
    videos = read_annotations(tmp_path / "ytvis.json")
    assert list(videos) == ["one", "two"]
    for item in run_items(run):
        for k in range(len(item.result.frames)):
            expected = to_label_map(item.result, k, CLASSES)
            assert np.array_equal(videos[item.result.clip].label_map(k), expected)
            assert expected.any() != item.result.frames[k].silent


def test_the_file_says_the_same_as_the_function(run: Path, tmp_path: Path) -> None:
    export("youtube-vis", run_items(run), tmp_path / "set")
    written = json.loads((tmp_path / "set" / "youtube_vis.json").read_text())
    assert written == to_youtube_vis(item.result for item in run_items(run))


def test_images_are_written_with_the_option(run: Path, tmp_path: Path) -> None:
    export("youtube-vis", run_items(run, ["two"]), tmp_path / "set", ExportOptions(Categories(), images=True))
    (video,) = json.loads((tmp_path / "set" / "youtube_vis.json").read_text())["videos"]
    assert len(video["file_names"]) == 5
    assert all((tmp_path / "set" / "images" / name).is_file() for name in video["file_names"])


def test_clips_of_five_or_ten_seconds_are_named_as_avsbench_ov_names_them(results: list[ClipResult]) -> None:
    six, five = to_youtube_vis(results)["videos"]
    assert "label" not in six and six["file_names"][3] == "one/00003.jpg"
    assert (five["label"], five["file_names"][3]) == ("v1m", "two/3.jpg")
    ten = by_hand("ten", None, 10)
    (video,) = to_youtube_vis([ten])["videos"]
    assert (video["label"], video["file_names"][9]) == ("v2", "ten/9.jpg")
    fast = replace(ten, frames=tuple(replace(frame, time=frame.time / 2) for frame in ten.frames))
    (video,) = to_youtube_vis([fast])["videos"]
    assert "label" not in video and video["file_names"][9] == "ten/00009.jpg"  # frame 9 is not second 9


@pytest.mark.parametrize("masks", ["counts", "polygons"])
def test_our_reader_reads_every_code_of_masks(masks: MaskCode, run: Path, tmp_path: Path) -> None:
    export("youtube-vis", run_items(run), tmp_path / "ytvis.json", ExportOptions(Categories(), masks=masks))
    read = read_annotations(tmp_path / "ytvis.json")["two"].label_map(0) > 0
    near = disc(22, 20, 14) | pair() if masks == "polygons" else ring() | pair()
    assert (read & near).sum() / (read | near).sum() > (0.93 if masks == "polygons" else 0.999)


def test_of_named_classes_only_those_are_annotated(results: list[ClipResult]) -> None:
    data = to_youtube_vis(results[:1], ["bell"])
    assert [category["name"] for category in data["categories"]] == ["bell"]
    assert [annotation["category_id"] for annotation in data["annotations"]] == [1]


def test_a_track_is_one_annotation_though_its_frames_are_apart(results: list[ClipResult]) -> None:
    data = to_youtube_vis(results[:1])
    assert [sum(mask is not None for mask in a["segmentations"]) for a in data["annotations"]] == [5, 3]
    assert all(len(a["segmentations"]) == data["videos"][0]["length"] == 6 for a in data["annotations"])


def test_without_tracks_a_category_is_the_union_of_its_masks(results: list[ClipResult]) -> None:
    _, plain = results
    near, far = disc(10, 10, 5), disc(30, 40, 5)
    frame = replace(plain.frames[0], segments=(segment(near, "dog", 0.9), segment(far, "dog", 0.5)))
    (annotation,) = to_youtube_vis([replace(plain, frames=(frame,))])["annotations"]
    from pycocotools import mask as coco

    assert np.array_equal(coco.decode(annotation["segmentations"][0]).astype(bool), near | far)
    assert annotation["score"] == 0.7


def test_two_tracks_of_one_name_stay_two(results: list[ClipResult]) -> None:
    _, plain = results
    frame = replace(
        plain.frames[0], segments=(segment(disc(10, 10, 5), "dog", 0.9, 1), segment(disc(30, 40, 5), "dog", 0.5, 2))
    )
    data = to_youtube_vis([replace(plain, frames=(frame,))])
    assert [a["category_id"] for a in data["annotations"]] == [1, 1]
    assert rle_to_mask(frame.segments[1].mask).sum() == data["annotations"][1]["areas"][0]
