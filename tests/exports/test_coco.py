"""COCO JSON, read back by pycocotools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from openavs.exports.base import Categories, ExportItem, run_items
from openavs.exports.coco import to_coco
from openavs.exports.registry import ExportOptions, export
from openavs.structures.masks import mask_to_rle, rle_to_mask
from openavs.structures.types import ClipResult
from tests.exports.conftest import SIZE, disc, pair, ring


def read(data: object, path: Path) -> COCO:
    path.write_text(json.dumps(data))
    return COCO(str(path))


def test_pycocotools_reads_back_every_mask_box_and_area(results: list[ClipResult], tmp_path: Path) -> None:
    coco = read(to_coco(results), tmp_path / "coco.json")
    truth = [segment for result in results for frame in result.frames for segment in frame.segments]
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(annotations) == len(truth) and len(coco.getImgIds()) == 11
    for annotation, segment in zip(annotations, truth, strict=True):
        mask = coco.annToMask(annotation).astype(bool)
        assert np.array_equal(mask, rle_to_mask(segment.mask))
        ys, xs = np.nonzero(mask)
        assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert annotation["area"] == mask.sum()
        assert coco.loadCats(annotation["category_id"])[0]["name"] == segment.phrase
        assert annotation["score"] == segment.score


def test_ids_begin_with_one_and_pictures_say_where_they_come_from(results: list[ClipResult]) -> None:
    data = to_coco(results)
    assert [category["id"] for category in data["categories"]] == [1, 2]
    assert [image["id"] for image in data["images"]] == list(range(1, 12))
    assert [a["id"] for a in data["annotations"]] == list(range(1, len(data["annotations"]) + 1))
    image = data["images"][7]
    assert (image["video"], image["frame_index"], image["time"]) == ("two", 1, 1.5)
    assert (image["height"], image["width"]) == SIZE


def test_a_track_keeps_one_id_and_no_other_clip_has_it(results: list[ClipResult]) -> None:
    first, _ = results
    data = to_coco([first, first])
    clip_of = {image["id"]: image["id"] > 6 for image in data["images"]}
    ids = {(clip_of[a["image_id"]], a["phrase"]): a["track_id"] for a in data["annotations"]}
    assert len(set(ids.values())) == 4
    for a in data["annotations"]:
        assert a["track_id"] == ids[clip_of[a["image_id"]], a["phrase"]]
    assert all("track_id" not in a for a in to_coco([results[1]])["annotations"])


def test_classes_fix_the_ids_and_leave_others_out(results: list[ClipResult]) -> None:
    data = to_coco(results, classes=("cat", "dog"))
    assert [c["name"] for c in data["categories"]] == ["cat", "dog"]
    assert {(a["category_id"], a["phrase"]) for a in data["annotations"]} == {(2, "dog")}
    assert to_coco(results, classes=("background", "bell"))["annotations"][0]["category_id"] == 1


def test_the_file_says_the_same_as_the_function(run: Path, tmp_path: Path) -> None:
    items = list(run_items(run))
    told = export("coco", items, tmp_path / "set")
    written = json.loads((tmp_path / "set" / "annotations" / "instances_train.json").read_text())
    assert written == to_coco(item.result for item in items)
    assert (told.clips, told.frames, told.segments) == (2, 11, len(written["annotations"]))


def test_pictures_are_where_the_file_says(run: Path, tmp_path: Path) -> None:
    export("coco", run_items(run), tmp_path / "set", ExportOptions(Categories(), images=True))
    coco = COCO(str(tmp_path / "set" / "annotations" / "instances_train.json"))
    for image in coco.loadImgs(coco.getImgIds()):
        with Image.open(tmp_path / "set" / "images" / "train" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])


def test_a_folder_has_the_layout_of_the_coco_release(run: Path, tmp_path: Path) -> None:
    export("coco", run_items(run), tmp_path / "set", ExportOptions(Categories(), images=True, split="val"))
    names = sorted(path.relative_to(tmp_path / "set").as_posix() for path in (tmp_path / "set").glob("*/*"))
    assert names == ["annotations/instances_val.json", "images/val"]
    image = json.loads((tmp_path / "set" / "annotations" / "instances_val.json").read_text())["images"][0]
    assert (tmp_path / "set" / "images" / "val" / image["file_name"]).is_file()


def test_what_coco_has_no_field_for_is_in_the_attributes_too(results: list[ClipResult]) -> None:
    tracked, plain = (to_coco([result])["annotations"][0] for result in results)
    assert tracked["attributes"] == {"score": 0.75, "phrase": "dog", "track_id": tracked["track_id"]}
    assert plain["attributes"] == {"score": 0.75, "phrase": "dog"}


def test_masks_as_lists_of_counts(run: Path, tmp_path: Path) -> None:
    export("coco", run_items(run), tmp_path / "coco.json", ExportOptions(Categories(), masks="counts"))
    coco = COCO(str(tmp_path / "coco.json"))
    dog, bell = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert all(isinstance(count, int) for count in dog["segmentation"]["counts"])
    assert np.array_equal(coco.annToMask(dog), ring()) and np.array_equal(coco.annToMask(bell), pair())


def test_masks_as_polygons_are_one_ring_each_as_label_studio_reads_them(run: Path, tmp_path: Path) -> None:
    told = export("coco", run_items(run), tmp_path / "coco.json", ExportOptions(Categories(), masks="polygons"))
    assert told.notes == [
        "polygons are lossy: of 14 masks 9 had holes, which are filled, and 5 were in parts, which are joined by thin "
        "lines; outlines are simplified"
    ]
    coco = COCO(str(tmp_path / "coco.json"))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        (ring_,) = annotation["segmentation"]
        assert len(ring_) >= 6 and len(ring_) % 2 == 0 and annotation["iscrowd"] == 0
    dog, bell = (coco.annToMask(a).astype(bool) for a in coco.loadAnns(coco.getAnnIds(imgIds=1)))
    for found, true in ((dog, disc(22, 20, 14)), (bell, pair())):
        assert (found & true).sum() / (found | true).sum() > 0.93


def test_an_empty_mask_has_no_polygon_and_so_no_annotation(results: list[ClipResult], tmp_path: Path) -> None:
    frame = results[0].frames[0]
    empty = replace(frame.segments[0], mask=mask_to_rle(np.zeros(SIZE, dtype=np.bool_)))
    item = ExportItem(replace(results[0], frames=(replace(frame, segments=(empty, frame.segments[1])),)), lambda: None)
    told = export("coco", [item], tmp_path / "coco.json", ExportOptions(Categories(), masks="polygons"))
    (annotation,) = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert (told.segments, annotation["id"], annotation["phrase"]) == (1, 1, "bell")


def test_a_result_without_anything_found_is_still_a_picture(results: list[ClipResult], tmp_path: Path) -> None:
    coco = read(to_coco(results, classes=("violin",)), tmp_path / "coco.json")
    assert len(coco.getImgIds()) == 11 and coco.getAnnIds() == []


def test_masks_with_holes_and_parts_come_back(results: list[ClipResult], tmp_path: Path) -> None:
    coco = read(to_coco(results), tmp_path / "coco.json")
    dog, bell = (coco.annToMask(a).astype(bool) for a in coco.loadAnns(coco.getAnnIds(imgIds=1)))
    assert np.array_equal(dog, ring()) and np.array_equal(bell, pair())


@pytest.mark.parametrize("classes", [(), ("bell", "dog")])
def test_youtube_vis_is_read_by_pycocotools_too(
    results: list[ClipResult], tmp_path: Path, classes: tuple[str, ...]
) -> None:
    from pycocotools import mask as coco

    from openavs.exports.youtube_vis import to_youtube_vis

    data = to_youtube_vis(results, classes)
    names = {c["id"]: c["name"] for c in data["categories"]}
    for annotation in data["annotations"]:
        result = results[annotation["video_id"] - 1]
        for frame, code, box, area in zip(
            result.frames, annotation["segmentations"], annotation["bboxes"], annotation["areas"], strict=True
        ):
            own = [s for s in frame.segments if s.phrase == names[annotation["category_id"]]]
            assert (code is None) == (not own) == (box is None)
            if code is not None:
                assert np.array_equal(coco.decode(code).astype(bool), rle_to_mask(own[0].mask))
                assert area == coco.area(code) and box == coco.toBbox(code).tolist()
