"""All formats: complete or not written, no overwriting by default, one clip in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.evaluation.benchmark import load_benchmark
from openavs.exports.base import (
    Categories,
    ExportItem,
    filtered_by_recipe,
    open_source,
    run_classes,
    run_items,
    sampled_fps,
)
from openavs.exports.registry import FORMATS, ExportOptions, export
from openavs.structures.types import ClipResult
from tests.exports.conftest import by_hand, write_source


def memory_items(results: list[ClipResult]) -> list[ExportItem]:
    return [ExportItem(result, partial(open_source, result)) for result in results]


def test_every_format_names_a_function_that_there_is() -> None:
    assert all(callable(form.load()) for form in FORMATS.values())
    with pytest.raises(InputError, match="did you mean 'coco'"):
        export("cocoo", [], Path("x"))


def test_what_is_there_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    for overwrite, why in ((False, "already exists"), (True, "not an earlier export")):
        with pytest.raises(InputError, match=why):
            export("coco", run_items(run), tmp_path / "mine", overwrite=overwrite)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    (tmp_path / "coco.json").write_text("{}")
    with pytest.raises(InputError, match="already exists"):
        export("coco", run_items(run), tmp_path / "coco.json")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="not an earlier export"):
        export("coco", run_items(run), tmp_path / "link", overwrite=True)


def test_an_earlier_export_is_replaced_with_overwrite(run: Path, tmp_path: Path) -> None:
    export("coco", run_items(run), tmp_path / "set")
    with pytest.raises(InputError, match="--overwrite"):
        export("timeline", run_items(run), tmp_path / "set")
    export("timeline", run_items(run), tmp_path / "set", origin="run", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["events.csv", "export.json", "timeline.csv"]
    about = json.loads((tmp_path / "set" / "export.json").read_text())
    assert (about["format"], about["origin"], about["clips"]) == ("timeline", "run", 2)


def test_an_earlier_file_is_replaced_with_overwrite(run: Path, tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text("{}")
    export("coco", run_items(run), tmp_path / "coco.json", overwrite=True)
    assert len(json.loads((tmp_path / "coco.json").read_text())["images"]) == 11
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="not an earlier export"):
        export("coco", run_items(run), tmp_path / "folder.json", overwrite=True)


def test_a_failure_leaves_the_earlier_export(run: Path, tmp_path: Path) -> None:
    export("coco", run_items(run), tmp_path / "set")
    before = (tmp_path / "set" / "annotations" / "instances_train.json").read_bytes()

    def broken() -> Iterator[ExportItem]:
        yield from run_items(run, ["one"])
        raise InputError("the disk is full")

    with pytest.raises(InputError, match="the disk is full"):
        export("coco", broken(), tmp_path / "set", overwrite=True)
    assert (tmp_path / "set" / "annotations" / "instances_train.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_empty_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no result to export as coco"):
        export("coco", [], tmp_path / "set")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["coco", "youtube-vis", "timeline"])
def test_clips_are_taken_one_at_a_time(name: str, tmp_path: Path) -> None:
    alive: set[int] = set()
    most = 0

    class Counted(ClipResult):
        def __del__(self) -> None:
            alive.discard(id(self))

    def items() -> Iterator[ExportItem]:
        nonlocal most
        for number in range(30):
            plain = by_hand(f"clip{number:02d}", None, 3)
            counted = Counted(plain.clip, plain.size, plain.frames)
            alive.add(id(counted))
            most = max(most, len(alive))
            item = ExportItem(counted, partial(open_source, plain))
            del counted
            yield item
            del item

    assert export(name, items(), tmp_path / "set").clips == 30
    assert most <= 3


def test_sources_that_are_gone_are_named(results: list[ClipResult], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one was made in memory"):
        export("yolo-seg", memory_items(results), tmp_path / "yolo")
    gone = [replace(results[0], source=str(tmp_path / "gone.mp4"))]
    with pytest.raises(InputError, match=r"gone\.mp4 of one does not exist; give the folder of the videos with --root"):
        export("cutout-png", memory_items(gone), tmp_path / "cut")


def test_another_video_in_its_place_is_refused(run: Path, results: list[ClipResult], tmp_path: Path) -> None:
    write_source(tmp_path / "short.mp4", 3)
    short = [replace(results[0], source=str(tmp_path / "short.mp4"))]
    with pytest.raises(InputError, match=r"3 frames of .* can no longer be read"):
        export("yolo-seg", memory_items(short), tmp_path / "yolo")
    other = [replace(results[0], source=str(tmp_path / "short.mp4"), size=(10, 10))]
    with pytest.raises(InputError, match="another video"):
        export("yolo-seg", memory_items(other), tmp_path / "yolo")


def test_relative_sources_start_from_the_folder_given(results: list[ClipResult], tmp_path: Path) -> None:
    write_source(tmp_path / "one.mp4", 6)
    moved = replace(results[0], source="one.mp4")
    assert open_source(moved, root=tmp_path).size == moved.size


def test_the_filter_of_the_recipe_leaves_out_what_label_would(run: Path, tmp_path: Path) -> None:
    told = export("coco", filtered_by_recipe(run_items(run)), tmp_path / "set")
    assert told.segments == 9  # min_score 0.5 drops the bells


def test_a_clip_that_its_recipe_refuses_as_a_whole_is_left_out(results: list[ClipResult], tmp_path: Path) -> None:
    loud = replace(results[1], recipe={"label_filter": {"min_audible_fraction": 0.9}})  # one frame of five is silent
    told = export("coco", filtered_by_recipe(memory_items([results[0], loud])), tmp_path / "set")
    assert told.clips == 1
    wrong = replace(results[1], recipe={"label_filter": {"min_audible_fraction": "much"}})
    with pytest.raises(InputError, match="the recipe of two has an invalid 'label_filter'; label it again"):
        list(filtered_by_recipe(memory_items([wrong])))


def test_where_no_recipe_says_it_the_times_say_how_many_frames_a_second(results: list[ClipResult]) -> None:
    assert sampled_fps(results[0]) == 1.0
    half = tuple(replace(frame, time=frame.time / 2) for frame in results[0].frames)
    assert sampled_fps(replace(results[0], recipe={}, frames=half)) == 2.0
    assert sampled_fps(replace(results[0], recipe={"sample": {"fps": 0}}, frames=half[:1])) == 1.0


def test_a_clip_id_that_cannot_be_a_file_name_is_refused(results: list[ClipResult]) -> None:
    with pytest.raises(InputError, match=r"the clip id '\.\./up' of a result cannot be a file name"):
        memory_items([replace(results[0], clip="../up")])


@pytest.mark.parametrize(
    ("saved", "why"),
    [
        ("{", "was not written by this openavs"),
        ("[1]", "was not written by this openavs"),
        ('{"masks": [1]}', "has classes that are not texts"),
        ('{"masks": {"classes": [1, 2]}}', "has classes that are not texts"),
    ],
)
def test_a_damaged_run_is_refused(saved: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(saved)
    with pytest.raises(InputError, match=rf"run\.json {why}"):
        run_classes(tmp_path)


def test_the_categories_of_a_clip_do_not_depend_on_the_frame(results: list[ClipResult]) -> None:
    late = replace(results[0], frames=results[0].frames[1:])  # the dog alone comes first, then the bell
    assert Categories.of_clip(late).names == ("dog", "bell")
    assert Categories.of_clip(replace(results[0], frames=())).names == ()


def test_a_benchmarks_vocabulary_has_the_benchmarks_class_names(results: list[ClipResult]) -> None:
    card = load_benchmark("ov")
    known = Categories.of_vocabulary(["background", *(card.vocabulary or ())])
    assert known.names == tuple(card.classes[1:]) and "emergency-car" in known.names
    dog = results[0].frames[0].segments[0]
    phrases = ("emergency car", "fire truck", "emergency-car")
    assert {known.id(replace(dog, phrase=phrase)) for phrase in phrases} == {card.classes.index("emergency-car")}
    assert Categories.of_vocabulary(["emergency car", "dog"]).names == ("emergency car", "dog")


@pytest.mark.parametrize(
    ("name", "out", "said"),
    [
        ("timeline", "x.json", r"a folder or one \.csv file, and \S+x\.json names .*; give --out \S+x or \S+x\.csv$"),
        ("coco", "x.csv", r"a folder or one \.json file, and \S+x\.csv names .*; give --out \S+x or \S+x\.json$"),
        ("yolo-seg", "x.json", r"yolo-seg writes a folder, and \S+x\.json names another file; give --out \S+x$"),
        ("overlay", "x.MP4", r"overlay writes a folder, and \S+x\.MP4 names another file; give --out \S+x$"),
    ],
)
def test_the_name_of_another_kind_of_file_is_refused(name: str, out: str, said: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        export(name, run_items(run), tmp_path / out)
    assert not list(tmp_path.iterdir())


def test_options_that_a_format_has_no_place_for_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--images writes a folder, and .*coco\.json names a file; give --out a name"):
        export("coco", run_items(run), tmp_path / "coco.json", ExportOptions(Categories(), images=True))
    with pytest.raises(InputError, match="--masks polygons is for coco, youtube-vis, cvat; leave it out for timeline"):
        export("timeline", run_items(run), tmp_path / "timeline", ExportOptions(Categories(), masks="polygons"))
    assert not list(tmp_path.iterdir())


def test_categories_map_as_the_pipeline_does(results: list[ClipResult]) -> None:
    dog = results[0].frames[0].segments[0]
    known = Categories(["background", "cat", "dog"], {"mutt": "dog"})
    assert [known.id(replace(dog, phrase=p)) for p in ("dog", "puppy", "mutt", "violin")] == [2, 2, 2, None]
    assert known.id(replace(dog, phrase="animal", label="cat")) == 1
    assert known.names == ("cat", "dog") and ExportOptions(known).split == "train"
