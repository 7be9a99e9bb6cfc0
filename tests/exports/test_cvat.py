"""CVAT for video 1.1, decoded as CVAT does: of a track of masks the first shape counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.exports.base import Categories, run_items
from openavs.exports.cvat import crop_runs, read
from openavs.exports.registry import ExportOptions, MaskCode, export
from openavs.results.serialization import read_result
from openavs.structures.masks import mask_iou, rle_to_mask
from openavs.structures.types import BoolMask
from tests.exports.conftest import SIZE


def exported(run: Path, out: Path, masks: MaskCode = "rle") -> Path:
    export("cvat", run_items(run), out, ExportOptions(Categories(), masks=masks))
    return out


def shapes(path: Path) -> Iterator[tuple[str, int, str | None, BoolMask]]:
    """Label, frame, `track` and mask of every mask, as CVAT takes them from the file."""
    for track in ElementTree.parse(path).getroot().iterfind("track"):
        shape = next(iter(track))
        assert (shape.tag, shape.get("keyframe"), shape.get("outside")) == ("mask", "1", "0")
        left, top, width, height = (int(shape.get(key, "")) for key in ("left", "top", "width", "height"))
        pixels: list[int] = []
        for place, run in enumerate(shape.get("rle", "").split(",")):
            pixels += [place % 2] * int(run)
        mask = np.zeros(SIZE, dtype=np.bool_)
        mask[top : top + height, left : left + width] = np.reshape(pixels, (height, width))
        number = shape.findtext("attribute[@name='track']")
        yield track.get("label", ""), int(shape.get("frame", "")), number, mask


def test_runs_are_those_of_the_mask_within_its_box_by_rows() -> None:
    mask = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]], dtype=np.bool_)
    assert crop_runs(mask) == ([1, 4, 1], (1, 1, 3, 2))
    assert crop_runs(np.ones((2, 3), dtype=np.bool_)) == ([0, 6], (0, 0, 3, 2))


@pytest.mark.parametrize("clip", ["one", "two"])
def test_every_mask_is_a_track_of_its_own_that_is_exact(run: Path, tmp_path: Path, clip: str) -> None:
    found = list(shapes(exported(run, tmp_path / "cvat") / clip / "annotations.xml"))
    frames = read_result(run, clip).frames
    truth = [(frame.index, segment) for frame in frames for segment in frame.segments]
    assert [(label, index) for label, index, _, _ in found] == [(segment.phrase, index) for index, segment in truth]
    for (_, _, number, mask), (_, segment) in zip(found, truth, strict=True):
        assert np.array_equal(mask, rle_to_mask(segment.mask))
        assert number == (None if segment.track is None else str(segment.track))


def test_a_mask_ends_at_the_next_frame(run: Path, tmp_path: Path) -> None:
    root = ElementTree.parse(exported(run, tmp_path / "cvat") / "one" / "annotations.xml").getroot()
    flags = [[(s.get("frame"), s.get("outside")) for s in track] for track in root.iterfind("track")]
    assert flags[0] == [("0", "0"), ("1", "1")]
    assert root.findtext("meta/task/name") == "one" and root.findtext("meta/task/stop_frame") == "5"


def test_polygons_are_tracks_with_a_key_frame_in_each_frame(run: Path, tmp_path: Path) -> None:
    folder = exported(run, tmp_path / "cvat", "polygons")
    root = ElementTree.parse(folder / "one" / "annotations.xml").getroot()
    tracks = {t.get("label"): [(int(s.get("frame", "")), s.get("outside")) for s in t] for t in root.iterfind("track")}
    assert tracks["dog"] == [*((i, "0") for i in range(5)), (5, "1")]
    assert tracks["bell"] == [(0, "0"), (1, "1"), (2, "0"), (3, "1"), (4, "0"), (5, "1")]
    (first, *_) = [frame for frame in read(folder / "one") if frame.index == 0]
    for mask, segment in zip(first.masks, read_result(run, "one").frames[0].segments, strict=True):
        assert mask_iou(rle_to_mask(mask.mask), rle_to_mask(segment.mask)) > 0.75  # the hole of the dog is filled


def test_masks_as_counts_are_not_a_format_of_cvat(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--masks counts is for coco, youtube-vis; leave it out for cvat"):
        exported(run, tmp_path / "cvat", "counts")


FAULTS = {
    "a document type": ("<annotations>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>", "document type"),
    "no XML": ("</annotations>", "", "is not XML"),
    "a box": ("<mask ", "<box ", "box"),
    "a mask outside": ('left="6"', 'left="60"', "outside its frame of 64 x 48"),
    "runs of another mask": ('height="29"', 'height="28"', "do not fill a mask of 29 x 28"),
    "no number": ('top="8"', 'top="-8"', "invalid top '-8'"),
    "no frame": ('frame="0"', 'frame="x"', "invalid frame 'x'"),
    "millions of frames": ("<stop_frame>5", "<stop_frame>99999999", "has the frames 0 to 99999999"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_file_is_refused(run: Path, tmp_path: Path, fault: str) -> None:
    path = exported(run, tmp_path / "cvat") / "one" / "annotations.xml"
    before, after, why = FAULTS[fault]
    text = path.read_text("utf-8")
    if fault == "a box":
        text = text.replace("</mask>", "</box>")
    path.write_text(text.replace(before, after), "utf-8")
    with pytest.raises(InputError, match=why):
        list(read(path))
