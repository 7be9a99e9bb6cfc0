"""Label Studio's tasks and labeling configuration; its brush code, against bytes that label-studio-sdk 2.1.2 wrote.

`tests/packages/test_label_studio_sdk.py` decodes with the package itself.
"""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.exports.base import Categories, ExportItem, run_items
from openavs.exports.label_studio import decode_brush, encode_brush, read
from openavs.exports.registry import ExportOptions, export
from openavs.results.serialization import read_result
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import BoolMask

# label_studio_sdk.converter.brush.mask2rle of T_SHAPE
GOLDEN = [0, 0, 0, 60, 57, 27, 254, 23, 0, 183, 255, 108, 2, 63, 249, 192, 0]
T_SHAPE = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0]], dtype=np.bool_)


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tasks") / "studio"
    export("label-studio", run_items(run), out)
    return out


def literal(mask: BoolMask) -> list[int]:
    """A brush with one run of single values per pixel, which the browser writes at soft edges."""
    bits = f"{4 * mask.size:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for inside in mask.ravel():
        bits += "0" + "00" + f"{3:03b}" + "".join(f"{value:08b}" for value in (9, 9, 9, 200 if inside else 20))
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def test_the_brush_code_is_that_of_label_studio() -> None:
    assert encode_brush(T_SHAPE) == GOLDEN
    assert np.array_equal(decode_brush(GOLDEN, T_SHAPE.shape, "it"), T_SHAPE)
    assert np.array_equal(decode_brush(literal(T_SHAPE), T_SHAPE.shape, "it"), T_SHAPE)


def test_long_runs_are_split(tmp_path: Path) -> None:
    mask = np.zeros((300, 400), dtype=np.bool_)
    mask[:200] = True
    assert np.array_equal(decode_brush(encode_brush(mask), mask.shape, "it"), mask)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (GOLDEN[:-4], "ends early"),
        ([], "ends early"),
        (GOLDEN[:7] + [255] * 20, "too many values"),
        ([0, 0, 0, 64, *GOLDEN[4:]], "has 64 values of 8 bits, not 5 x 3 x 4 of 8"),
        ([0, 0, 0, 256], "not a list of bytes"),
        (["0"], "not a list of bytes"),
    ],
)
def test_another_code_is_refused(code: list[int], why: str) -> None:
    with pytest.raises(InputError, match=why):
        decode_brush(code, T_SHAPE.shape, "region 0")


def test_a_task_has_the_frames_the_sound_and_every_mask(run: Path, folder: Path) -> None:
    for task in json.loads((folder / "tasks.json").read_text()):
        result = read_result(run, task["data"]["clip"])
        (prediction,) = task["predictions"]
        brushes = [own for own in prediction["result"] if own["type"] == "brushlabels"]
        truth = [(place, s) for place, frame in enumerate(result.frames) for s in frame.segments]
        assert [own["item_index"] for own in brushes] == [place for place, _ in truth]
        for own, (_, segment) in zip(brushes, truth, strict=True):
            size = own["original_height"], own["original_width"]
            assert np.array_equal(decode_brush(own["value"]["rle"], size, "it"), rle_to_mask(segment.mask))
            assert (own["value"]["brushlabels"], own["score"]) == ([segment.phrase], segment.score)
        spans = [own["value"] for own in prediction["result"] if own["type"] == "labels"]
        assert [(own["start"], own["end"], *own["labels"]) for own in spans] == [
            (event.onset, event.offset, event.phrase) for event in result.events
        ]
        for url in (*task["data"]["frames"], task["data"]["sound"]):
            assert (folder / url.partition("?d=")[2]).is_file()


def test_the_labeling_configuration_has_the_controls_and_labels_of_the_regions(folder: Path) -> None:
    view = ElementTree.parse(folder / "labeling.xml").getroot()
    labels = {own.get("name"): {label.get("value") for label in own} for own in view}
    assert labels["frames-labels"] == {"dog", "bell"} and labels["sound-labels"] == {"dog barking", "=SUM(A1)"}
    for task in json.loads((folder / "tasks.json").read_text()):
        for own in task["predictions"][0]["result"]:
            assert {*own["value"][own["type"]]} <= labels[own["from_name"]]


def test_a_clip_without_audio_has_a_silent_sound(mute: ExportItem, tmp_path: Path) -> None:
    summary = export("label-studio", [mute], tmp_path / "studio")
    assert summary.notes == ["silence is the sound of 1 clip without audio, since every task has a sound"]
    with wave.open(str(tmp_path / "studio" / "sounds" / "mute.wav")) as sound:
        assert sound.getnframes() > 0 and not any(sound.readframes(sound.getnframes()))
    export("label-studio", [mute], tmp_path / "bare", ExportOptions(Categories(), images=False))
    assert not (tmp_path / "bare" / "images").exists()


def test_the_annotation_that_is_ground_truth_counts_and_two_others_are_refused(folder: Path, tmp_path: Path) -> None:
    task = json.loads((folder / "tasks.json").read_text())[0]
    result = task["predictions"][0]["result"]
    mine = {"completed_by": {"email": "ann@example.org"}, "updated_at": "2026-01-02T03:04:05.678Z", "result": result}
    other = {"completed_by": 7, "result": []}
    path = tmp_path / "export.json"
    path.write_text(json.dumps([{**task, "annotations": [mine, other]}]))
    with pytest.raises(InputError, match=r"2 annotations, by ann@example.org, user 7; mark one of them"):
        list(read(path))
    path.write_text(json.dumps([{**task, "annotations": [other, {**mine, "ground_truth": True}]}]))
    frames = list(read(path))
    assert [len(frame.masks) for frame in frames] == [2, 1, 2, 1, 2, 0]
    assert {(frame.author, frame.at) for frame in frames} == {("ann@example.org", "2026-01-02T03:04:05Z")}


def test_tasks_without_annotations_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="has no annotations of a person"):
        list(read(folder / "tasks.json"))


def test_a_rectangle_has_no_mask(folder: Path, tmp_path: Path) -> None:
    task = json.loads((folder / "tasks.json").read_text())[0]
    task["annotations"] = [{"result": [{"type": "rectanglelabels", "value": {}}]}]
    (tmp_path / "export.json").write_text(json.dumps([task]))
    with pytest.raises(InputError, match="rectanglelabels, which has no mask; draw brushes or polygons"):
        list(read(tmp_path / "export.json"))


def image_task(path: Path, image: str = "/data/upload/1/a%20clip/frame_000003.jpg", **changes: Any) -> Path:
    """Write a task of one image with a polygon, a rectangle in percent of 40 x 20 pixels."""
    points = [[25, 50], [75, 50], [75, 100], [25, 100]]
    region = {"type": "polygonlabels", "original_width": 40, "original_height": 20, "meta": {"track": 5}}
    region |= {"value": {"points": points, "polygonlabels": ["dog"]}} | changes
    path.write_text(json.dumps([{"data": {"image": image}, "annotations": [{"result": [region]}]}]))
    return path


def test_a_polygon_in_a_task_of_one_image(tmp_path: Path) -> None:
    [frame] = read(image_task(tmp_path / "export.json"))
    assert (frame.index, frame.size, frame.names, frame.author) == (3, (20, 40), None, None)
    assert "a clip" in frame.clips
    [mask] = frame.masks
    assert (mask.name, mask.number, mask.polygon) == ("dog", 5, True)
    found = rle_to_mask(mask.mask)
    assert found[12:19, 12:29].all() and found.sum() == pytest.approx(20 * 10, rel=0.15)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"value": {"points": [], "polygonlabels": ["dog", "cat"]}}, "region 0 has 2 labels; give it one"),
        ({"value": {"points": [[1, 2, 3]], "polygonlabels": ["dog"]}}, "region 0 has invalid points"),
        ({"value": {"points": [[1, True]], "polygonlabels": ["dog"]}}, "region 0 has invalid points"),
        ({"item_index": 1}, "region 0 is in frame 1 of 1"),
        ({"original_width": 0}, "has 0 x 20 pixels"),
    ],
)
def test_regions_without_a_valid_mask_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        list(read(image_task(tmp_path / "export.json", **changes)))


def test_indices_that_occur_twice_are_refused(tmp_path: Path) -> None:
    task = {"data": {"clip": "a", "indices": [1, 1]}, "annotations": [{"result": []}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    with pytest.raises(InputError, match="invalid indices of its frames"):
        list(read(tmp_path / "export.json"))
