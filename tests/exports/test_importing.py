"""Corrections from COCO, CVAT and Label Studio: files as those tools write them, encoded here pixel by pixel."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.exports import reading
from openavs.exports.base import Categories, run_items
from openavs.exports.importing import OnConflict, import_masks
from openavs.exports.registry import ExportOptions, MaskCode, export
from openavs.results.serialization import read_result
from openavs.structures.masks import mask_to_rle, rle_to_mask
from openavs.structures.types import BoolMask
from tests.exports.conftest import SIZE, disc, pair, ring

Shape = tuple[int, str, int | None, BoolMask]  # frame, category, number of the object, mask
Run = Callable[..., Any]
Save = Callable[..., Path]
MOVED, BIRD = disc(30, 20, 9), disc(10, 10, 5)


def runs(flat: Sequence[bool] | Any) -> list[int]:
    found = [(bool(value), len(list(group))) for value, group in groupby(flat)]
    return [*([0] if found[0][0] else []), *(length for _, length in found)]


def save_coco(path: Path, shapes: Sequence[Shape], *, clip: str = "one", frames: int = 6, size: Any = SIZE) -> Path:
    """COCO as CVAT writes it: uncompressed runs by columns, the number of the object among the attributes."""
    names = sorted({"dog", "bell", *(name for _, name, _, _ in shapes)})
    images = [
        {"id": i + 1, "file_name": f"{clip}/{i:05d}.jpg", "height": size[0], "width": size[1]} for i in range(frames)
    ]
    annotations = [
        {
            "id": place,
            "image_id": frame + 1,
            "category_id": names.index(name) + 1,
            "segmentation": {"size": [*mask.shape], "counts": runs(mask.T.ravel())},
            "iscrowd": 1,
            "attributes": {} if number is None else {"track_id": number},
        }
        for place, (frame, name, number, mask) in enumerate(shapes)
    ]
    categories = [{"id": place, "name": name} for place, name in enumerate(names, start=1)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(data))
    return path


def save_cvat(path: Path, shapes: Sequence[Shape], *, clip: str = "one", frames: int = 6, size: Any = SIZE) -> Path:
    """CVAT for video 1.1: every mask is a track of its own."""
    root = ElementTree.Element("annotations")
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    for key, value in (("id", 9), ("name", clip), ("start_frame", 0), ("stop_frame", frames - 1)):
        ElementTree.SubElement(task, key).text = str(value)
    labels = ElementTree.SubElement(task, "labels")
    for name in sorted({"dog", "bell", *(name for _, name, _, _ in shapes)}):
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    original = ElementTree.SubElement(task, "original_size")
    for key, value in zip(("height", "width"), size, strict=True):
        ElementTree.SubElement(original, key).text = str(value)
    for place, (frame, name, number, mask) in enumerate(shapes):
        track = ElementTree.SubElement(root, "track", {"id": str(place), "label": name, "source": "manual"})
        flags = {"keyframe": "1", "outside": "0", "occluded": "0", "z_order": "0"}
        box = {"left": "0", "top": "0", "width": str(mask.shape[1]), "height": str(mask.shape[0])}
        rle = ", ".join(map(str, runs(mask.ravel())))
        shape = ElementTree.SubElement(track, "mask", {"frame": str(frame), **flags, "rle": rle, **box})
        ElementTree.SubElement(shape, "attribute", {"name": "track"}).text = "" if number is None else str(number)
        end = {**flags, "outside": "1"}
        ElementTree.SubElement(track, "mask", {"frame": str(frame + 1), **end, "rle": rle, **box})
    ElementTree.ElementTree(root).write(path, "utf-8", xml_declaration=True)
    return path


def save_studio(path: Path, shapes: Sequence[Shape], *, clip: str = "one", frames: int = 6, size: Any = SIZE) -> Path:
    """Label Studio's JSON: brushes of single RGBA values, as `rle-pack` allows."""
    result = []
    for frame, name, number, mask in shapes:
        bits = f"{4 * mask.size:032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in (3, 4, 8, 16))
        bits += "".join(f"000{3:03b}{0:024b}{255 * int(inside):08b}" for inside in mask.ravel())
        bits += "0" * (-len(bits) % 8)
        code = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
        value = {"format": "rle", "rle": code, "brushlabels": [name]}
        place = {"item_index": frame, "original_height": mask.shape[0], "original_width": mask.shape[1]}
        result.append({"type": "brushlabels", "value": value, "meta": {"track": number}, **place})
    data = {"clip": clip, "indices": list(range(frames)), "labels": sorted({"dog", "bell", *(s[1] for s in shapes)})}
    path.write_text(json.dumps([{"id": 1, "data": data, "annotations": [{"result": result, "completed_by": 3}]}]))
    return path


TOOLS: dict[str, tuple[str, Save]] = {
    "coco": ("coco.json", save_coco),
    "cvat": ("annotations.xml", save_cvat),
    "label-studio": ("project.json", save_studio),
}


@pytest.fixture
def results(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "out"))


def content(results: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(results.glob("clips/*/result.json"))}


def as_found(results: Path, clip: str = "one") -> list[Shape]:
    frames = read_result(results, clip).frames
    return [(frame.index, s.phrase, s.track, s.array) for frame in frames for s in frame.segments]


def edited(results: Path) -> list[Shape]:
    """Frame 1: the dog is elsewhere; 2: no bell; 3: the dog is a wolf; 5: a bird without a number."""
    shapes = []
    for frame, name, number, mask in as_found(results):
        if (frame, name) != (2, "bell"):
            drawn = MOVED if frame == 1 else mask
            shapes.append((frame, "wolf" if frame == 3 else name, number, drawn))
    return [*shapes, (5, "bird", None, BIRD)]


@pytest.mark.parametrize(
    ("tool", "masks"),
    [
        ("coco", "rle"),
        ("coco", "counts"),
        ("coco", "polygons"),
        ("cvat", "rle"),
        ("cvat", "polygons"),
        ("label-studio", "rle"),
    ],
)
def test_an_unchanged_export_changes_nothing(results: Path, tmp_path: Path, tool: str, masks: MaskCode) -> None:
    before, out = content(results), tmp_path / "exported"
    export(tool, run_items(results), out, ExportOptions(Categories(), images=False, masks=masks))
    if tool == "label-studio":  # a person submits the predictions as they are
        tasks = json.loads((out / "tasks.json").read_text())
        out = tmp_path / "project.json"
        out.write_text(json.dumps([{**task, "annotations": task.pop("predictions")} for task in tasks]))
    summary = import_masks(tool, out, results, "ann")
    assert (summary.read, len(summary.clips), dict(summary.actions)) == (11, 0, {})
    assert content(results) == before


@pytest.mark.parametrize("tool", TOOLS)
def test_what_a_person_changed_comes_back_with_its_record(results: Path, tmp_path: Path, tool: str) -> None:
    name, save = TOOLS[tool]
    before = read_result(results, "one")
    summary = import_masks(tool, save(tmp_path / name, edited(results)), results, "ann")
    assert (len(summary.clips), summary.frames, dict(summary.actions)) == (1, 4, {"mask": 2, "reject": 1, "rename": 1})
    after = read_result(results, "one")
    records = [(c.action, c.frame, c.track, c.phrase, c.author, c.tool) for c in after.corrections]
    assert records == [
        ("mask", 1, 7, "dog", "ann", tool),
        ("reject", 2, 3, "bell", "ann", tool),
        ("rename", 3, 7, "dog", "ann", tool),
        ("mask", 5, 8, "bird", "ann", tool),
    ]
    assert after.corrections[0].value == {"size": [*SIZE], "counts": mask_to_rle(MOVED).counts}
    assert after.corrections[2].value == "wolf"
    (dog,), (only,), (wolf,), (bird,) = (after.frames[i].segments for i in (1, 2, 3, 5))
    assert np.array_equal(dog.array, MOVED) and (dog.author, dog.score, dog.track) == ("person", 1.0, 7)
    assert dog.box == (11.0, 21.0, 30.0, 40.0)
    assert only == before.frames[2].segments[0]
    assert (wolf.phrase, wolf.author, wolf.mask) == ("wolf", "person", before.frames[3].segments[0].mask)
    assert (bird.phrase, bird.author, bird.track) == ("bird", "person", 8) and np.array_equal(bird.array, BIRD)
    assert after.frames[0] == before.frames[0] and after.frames[4] == before.frames[4]
    written = content(results)
    assert import_masks(tool, tmp_path / name, results, "ann").clips == []
    assert content(results) == written


def test_a_new_object_has_one_new_track_and_a_redrawn_one_keeps_its_own(results: Path, tmp_path: Path) -> None:
    shapes = [(frame, name, {7: 70, 3: 30}[number or 0], mask) for frame, name, number, mask in as_found(results)]
    shapes = [s if s[0] != 2 else (2, s[1], s[2], disc(40, 50, 4) if s[1] == "dog" else s[3]) for s in shapes]
    shapes += [(frame, "bird", 99, BIRD) for frame in (1, 3)]
    import_masks("coco", save_coco(tmp_path / "coco.json", shapes), results, "ann")
    frames = read_result(results, "one").frames
    assert {s.phrase: s.track for s in frames[2].segments} == {"dog": 7, "bell": 3}
    assert [s.track for i in (1, 3) for s in frames[i].segments if s.phrase == "bird"] == [8, 8]


def test_a_copy_of_a_mask_is_an_object_of_its_own(results: Path, tmp_path: Path) -> None:
    shapes = [(2, "dog", 7, disc(40, 55, 5)), *as_found(results)]  # CVAT copies the attributes, too
    summary = import_masks("cvat", save_cvat(tmp_path / "annotations.xml", shapes), results, "ann")
    assert dict(summary.actions) == {"mask": 1}
    assert sorted((s.phrase, s.track) for s in read_result(results, "one").frames[2].segments) == [
        *(("bell", 3), ("dog", 7), ("dog", 8)),
    ]


def test_a_clip_without_tracks_stays_without(results: Path, tmp_path: Path) -> None:
    shapes = [(0, "dog", 5, ring()), (0, "bell", 6, MOVED), (4, "bird", 7, BIRD)]
    import_masks("coco", save_coco(tmp_path / "coco.json", shapes, clip="two", frames=5), results, "ann")
    after = read_result(results, "two")
    assert [s.track for frame in after.frames for s in frame.segments] == [None] * 3
    assert [s.phrase for s in after.frames[0].segments] == ["dog", "bell"]


def test_categories_that_were_not_exported_stay(results: Path, tmp_path: Path) -> None:
    before = content(results)
    export("coco", run_items(results), tmp_path / "dogs", ExportOptions(Categories(["dog"])))
    assert import_masks("coco", tmp_path / "dogs", results, "ann").clips == []
    assert content(results) == before


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"clip": "three"}, "and .* has one, two; import into the results that were exported"),
        ({"frames": 7}, "one has no frame 6: its frames are 0 to 5"),
        ({"size": (24, 32)}, "frame . of one has 32 x 24 pixels in the file and 64 x 48 in the results"),
    ],
)
def test_a_file_of_other_results_is_refused_whole(
    results: Path, tmp_path: Path, tool: str, wrong: dict[str, Any], why: str
) -> None:
    name, save = TOOLS[tool]
    before, shapes = content(results), edited(results)
    if "size" in wrong:
        shapes = [(frame, name, number, mask[::2, ::2]) for frame, name, number, mask in shapes]
    with pytest.raises(InputError, match=why):
        import_masks(tool, save(tmp_path / name, shapes, **wrong), results, "ann")
    assert content(results) == before


def test_a_fault_in_the_second_clip_keeps_the_first_as_it_was(results: Path, tmp_path: Path) -> None:
    before = content(results)
    (tmp_path / "both").mkdir()
    save_coco(tmp_path / "both" / "a.json", edited(results))
    save_coco(tmp_path / "both" / "b.json", [], clip="two", frames=6)
    with pytest.raises(InputError, match="two has no frame 5"):
        import_masks("coco", tmp_path / "both", results, "ann")
    shutil.copy(tmp_path / "both" / "a.json", tmp_path / "both" / "b.json")
    with pytest.raises(InputError, match="has frame 0 of one twice"):
        import_masks("coco", tmp_path / "both", results, "ann")
    assert content(results) == before


@pytest.mark.parametrize(("on_conflict", "kept"), [("stop", "ann"), ("keep", "ann"), ("replace", "bob")])
def test_two_people_who_corrected_one_object(results: Path, tmp_path: Path, on_conflict: OnConflict, kept: str) -> None:
    import_masks("coco", save_coco(tmp_path / "ann.json", edited(results)), results, "ann")
    before, original = content(results), [s for s in as_found(results) if s[0] not in (1, 2)]
    shapes = [*original, (1, "dog", 7, pair()), (2, "dog", 7, ring()), (2, "bell", 3, pair()), (1, "bird", None, BIRD)]
    path = save_coco(tmp_path / "bob.json", shapes)
    if on_conflict == "stop":
        with pytest.raises(InputError, match=r"ann corrected dog in frame 1 of one at 2.*, and bob did otherwise"):
            import_masks("coco", path, results, "bob")
        assert content(results) == before
        return
    import_masks("coco", path, results, "bob", on_conflict)
    after = read_result(results, "one")
    dog = next(s for s in after.frames[1].segments if s.track == 7)
    assert np.array_equal(dog.array, MOVED if kept == "ann" else pair())
    assert len(after.frames[2].segments) == (1 if kept == "ann" else 2)  # ann rejected the bell
    assert any(s.phrase == "bird" for s in after.frames[1].segments)
    assert {c.author for c in after.corrections} == {"ann", "bob"}


def test_the_author_is_the_one_that_the_file_names(results: Path, tmp_path: Path) -> None:
    import_masks("label-studio", save_studio(tmp_path / "a.json", edited(results)), results)
    assert {c.author for c in read_result(results, "one").corrections} == {"user 3"}


def test_cvat_for_images_names_clips_and_frames_in_its_images(results: Path, tmp_path: Path) -> None:
    rle = ", ".join(map(str, runs(MOVED.ravel())))
    (tmp_path / "annotations.xml").write_text(
        "<annotations><meta><task><name>mine</name><labels><label><name>dog</name></label></labels></task></meta>"
        '<image id="0" name="one/images/00001.jpg" width="64" height="48">'
        f'<mask label="dog" rle="{rle}" left="0" top="0" width="64" height="48" occluded="0"/></image></annotations>'
    )
    summary = import_masks("cvat", tmp_path, results, "ann")
    assert (summary.read, dict(summary.actions)) == (1, {"mask": 1, "reject": 1})
    assert np.array_equal(read_result(results, "one").frames[1].segments[0].array, MOVED)


def test_a_zip_is_read_within_limits(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_cvat(tmp_path / "annotations.xml", edited(results))
    with zipfile.ZipFile(tmp_path / "task.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "annotations.xml")
        archive.writestr("images/00000.jpg", b"0")
    assert import_masks("cvat", tmp_path / "task.zip", results, "ann").frames == 4
    monkeypatch.setattr(reading, "MAX_BYTES", 100)
    for source in (tmp_path / "task.zip", path):
        with pytest.raises(InputError, match="larger than 0 MiB, the limit of an import"):
            import_masks("cvat", source, results, "ann")


COCO_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no list": (lambda data: data.pop("images"), "lacks 'images'"),
    "another image": (lambda data: data["annotations"][0].update(image_id=99), "of the image 99, which it does not"),
    "another category": (lambda data: data["annotations"][0].update(category_id=9), "has the category 9"),
    "a box only": (lambda data: data["annotations"][0].update(segmentation=[]), "has no mask"),
    "two points": (lambda data: data["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "less than three points"),
    "a far point": (lambda data: data["annotations"][0].update(segmentation=[[0, 0, 9, 9, 1e9, 0]]), "outside its"),
    "a text": (lambda data: data["annotations"][0].update(segmentation=[["a"]]), "has no mask"),
    "runs": (lambda data: data["annotations"][0]["segmentation"].update(counts=[1, -1]), "do not fill a mask"),
    "a code": (lambda data: data["annotations"][0]["segmentation"].update(counts="~~"), "not a run-length code"),
    "a size": (lambda data: data["annotations"][0]["segmentation"].update(size=[1, 1]), "a mask of the size"),
    "a name": (lambda data: data["images"][0].update(file_name="dog.jpg"), "is not named <clip>/<frame>.jpg"),
    "pixels": (lambda data: data["images"][0].update(height=1 << 30), "pixels"),
}


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_an_invalid_coco_file_is_refused(results: Path, tmp_path: Path, fault: str) -> None:
    path, before = save_coco(tmp_path / "coco.json", edited(results)), content(results)
    data = json.loads(path.read_text())
    change, why = COCO_FAULTS[fault]
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=why):
        import_masks("coco", path, results, "ann")
    assert content(results) == before


def test_polygons_of_coco_are_filled(results: Path, tmp_path: Path) -> None:
    path = save_coco(tmp_path / "coco.json", as_found(results))
    data = json.loads(path.read_text())
    data["annotations"][0]["segmentation"] = [[2, 2, 12, 2, 12, 12, 2, 12], [20, 20, 30, 20, 30, 30, 20, 30]]
    path.write_text(json.dumps(data))
    import_masks("coco", path, results, "ann")
    expected = np.zeros(SIZE, dtype=np.bool_)
    expected[2:12, 2:12] = expected[20:30, 20:30] = True
    first = read_result(results, "one").frames[0].segments
    assert np.array_equal(rle_to_mask(first[0].mask), expected)


def test_the_command_counts_changes_and_refuses_in_one_sentence(openavs: Run, results: Path, tmp_path: Path) -> None:
    path = save_cvat(tmp_path / "annotations.xml", edited(results))
    words = ("import", "cvat", path, "--into", results, "--author", "ann")
    told = openavs(*words, "--json").json()
    assert told["actions"] == {"mask": 2, "reject": 1, "rename": 1} and (told["clips"], told["read"]) == (1, 6)
    assert "no change in 0 frames of 0 clips, of 6 frames in the file" in openavs(*words).out
    for form, source, why in (
        ("yolo-seg", path, "corrections cannot be imported from 'yolo-seg'"),
        ("coco", path, "has no .json file"),
        ("cvat", tmp_path / "none.xml", "does not exist; give the file that cvat exported"),
    ):
        done = openavs("import", form, source, "--into", results)
        assert done.code == 2 and why in done.err and len(done.err.splitlines()) == 1
    assert openavs(*words, "--on-conflict", "ask").code == 2


def test_labels_of_a_vocabulary_follow_a_new_name(results: Path, tmp_path: Path) -> None:
    path = results / "clips" / "two" / "result.json"
    data = json.loads(path.read_text())
    for frame in data["frames"]:
        for segment in frame["segments"]:
            segment["label"] = segment["phrase"]
    path.write_text(json.dumps(data))
    shapes = [(f, "cat" if f == 1 else name, n, mask) for f, name, n, mask in as_found(results, "two")]
    save_coco(tmp_path / "coco.json", [*shapes, (4, "owl", None, BIRD)], clip="two", frames=5)
    before = read_result(results, "two").frames[1].segments[0]
    import_masks("coco", tmp_path / "coco.json", results, "ann")
    after = read_result(results, "two").frames
    assert after[1].segments[0] == replace(before, phrase="cat", label="cat", author="person")
    assert (after[4].segments[0].phrase, after[4].segments[0].label) == ("owl", "owl")
