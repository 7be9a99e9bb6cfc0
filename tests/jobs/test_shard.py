"""`run_shard`: its files, resuming, and clips that fail without an effect on others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openavs.config.recipe import recipe_from_dict
from openavs.jobs.checkpoint import ShardJournal, completion_path, journal_path
from openavs.jobs.job import ClipFinished, ShardSpec
from openavs.jobs.shard import run_shard
from openavs.pipeline.pipeline import Pipeline
from openavs.results.serialization import read_result
from tests.jobs.pool import planned, recipe, tree, videos


def chain(spec: ShardSpec) -> Pipeline:
    return Pipeline.from_recipe(recipe_from_dict(dict(spec.job.recipe), base=spec.job.base))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos(tmp_path_factory.mktemp("pool") / "videos", 4, white=(2,))


@pytest.fixture
def spec(pool: Path, tmp_path: Path) -> ShardSpec:
    return planned(pool, recipe(tmp_path / "r"), tmp_path / "out")[2][0]


def test_a_shard_becomes_results_labels_and_a_mark(spec: ShardSpec) -> None:
    out = spec.job.out
    mark = run_shard(spec, chain(spec))
    assert mark is not None
    assert mark["counts"] == {"ok": 4}
    assert json.loads(completion_path(out, 0).read_bytes()) == mark
    row = mark["rows"][1]
    assert (row["id"], row["prompts"], row["scores"], row["areas"], row["found"]) == (
        "v01",
        ["dog"],
        [0.9],
        [0.25],
        [2],
    )
    label = np.asarray(Image.open(out / "labels/clips/v01/labels_semantic/1.png"))
    assert label.dtype == np.uint8
    assert set(np.unique(label)) == {0, 255}
    assert (label[:24, :32] == 255).all()
    assert label.mean() == 255 / 4
    assert set(mark["files"]["v01"]) == {
        "clips/v01/masks/00000.png",
        "clips/v01/masks/00001.png",
        "clips/v01/result.json",
        "labels/clips/v01/labels_semantic/0.png",
        "labels/clips/v01/labels_semantic/1.png",
    }
    assert not (out / "work/000000.jsonl").exists()


def test_results_do_not_contain_paths_or_times_of_this_run(spec: ShardSpec, pool: Path) -> None:
    run_shard(spec, chain(spec))
    result = read_result(spec.job.out, "v00")
    assert (result.source, result.timings) == ("v00.mp4", {})
    for name in tree(spec.job.out):
        path = spec.job.out / name
        assert path.is_dir() or str(pool).encode() not in path.read_bytes()


def test_class_labels_hold_the_place_in_the_vocabulary(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", vocabulary=["cat", "dog"])
    spec = planned(pool, made, tmp_path / "out")[2][0]
    run_shard(spec, chain(spec))
    for name in ("labels/clips/v00/labels_semantic/0.png", "clips/v00/masks/00000.png"):
        picture = Image.open(tmp_path / "out" / name)
        assert picture.mode == "P"
        assert set(np.unique(np.asarray(picture))) == {0, 2}


def test_what_is_finished_is_not_done_again(spec: ShardSpec) -> None:
    asked: list[bool] = []
    told: list[ClipFinished] = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > 2

    assert run_shard(spec, chain(spec), on_clip=told.append, stop=stop) is None
    assert [done.clip for done in told] == ["v00", "v01"]
    run_shard(spec, chain(spec), on_clip=told.append)
    assert [done.clip for done in told] == ["v00", "v01", "v02", "v03"]
    assert run_shard(spec, chain(spec), on_clip=told.append) is not None  # committed: nothing is left to do
    assert len(told) == 4


def test_an_interrupted_shard_ends_as_one_that_was_not(spec: ShardSpec, pool: Path, tmp_path: Path) -> None:
    whole = planned(pool, recipe(tmp_path / "r"), tmp_path / "whole")[2][0]
    run_shard(whole, chain(whole))
    for stops_after in range(1, 4):
        left = iter([False] * stops_after)
        run_shard(spec, chain(spec), stop=lambda left=left: next(left, True))  # type: ignore[misc]
    run_shard(spec, chain(spec))
    shutil.rmtree(spec.job.out / "work")
    shutil.rmtree(tmp_path / "whole/work")
    assert tree(spec.job.out) == tree(tmp_path / "whole")


def test_a_file_that_was_lost_or_changed_is_made_again(spec: ShardSpec) -> None:
    left = iter([False, False])
    run_shard(spec, chain(spec), stop=lambda: next(left, True))
    (spec.job.out / "clips/v00/result.json").write_bytes(b"")  # renamed, and not yet on the disk when the power went
    (spec.job.out / "labels/clips/v01/labels_semantic/0.png").unlink()
    told: list[ClipFinished] = []
    run_shard(spec, chain(spec), on_clip=told.append)
    assert [done.clip for done in told] == ["v00", "v01", "v02", "v03"]


def test_a_journal_that_was_cut_in_a_line_is_read_up_to_there(spec: ShardSpec) -> None:
    left = iter([False, False])
    run_shard(spec, chain(spec), stop=lambda: next(left, True))
    path = journal_path(spec.job.out, 0)
    path.write_bytes(path.read_bytes()[:-20])
    assert set(ShardJournal.read(path).finished) in ({"v00"}, {"v00", "v01"})
    mark = run_shard(spec, chain(spec))
    assert mark is not None
    assert mark["counts"] == {"ok": 4}


def test_a_part_is_put_on_record_and_not_committed(spec: ShardSpec) -> None:
    assert run_shard(spec.part("v02"), chain(spec)) is None
    assert set(ShardJournal.read(journal_path(spec.job.out, 0)).finished) == {"v02"}
    assert not completion_path(spec.job.out, 0).exists()


def test_clips_that_fail_are_rows_with_a_reason_and_leave_nothing(pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(pool, folder)
    (folder / "v00.mp4").write_bytes(b"")
    (folder / "v01.mp4").write_text("not a video at all")
    spec = planned(folder, recipe(tmp_path / "r", detector={"use": "./stages.py:Faulty"}), tmp_path / "out")[2][0]
    (folder / "v03.mp4").unlink()
    mark = run_shard(spec, chain(spec))
    assert mark is not None
    assert [row["reason"] for row in mark["rows"]] == [
        "unreadable",
        "unreadable",
        "unexpected ZeroDivisionError",
        "missing",
    ]
    assert mark["counts"] == {"failed": 4}
    assert str(folder) not in json.dumps(mark)
    assert not list((tmp_path / "out").glob("clips/*"))
    assert not (tmp_path / "out/labels").exists()


def test_a_video_without_sound_is_counted_as_such(tmp_path: Path) -> None:
    from tests.media_files import gray, make_media

    (tmp_path / "videos").mkdir()
    make_media(tmp_path / "videos/mute.mp4", [gray(1)] * 8, fps=4)
    spec = planned(tmp_path / "videos", recipe(tmp_path / "r"), tmp_path / "out")[2][0]
    mark = run_shard(spec, chain(spec))
    assert mark is not None
    assert mark["reasons"] == {"no_sound": 1}


def test_what_a_killed_run_left_of_a_clip_is_cleared(spec: ShardSpec) -> None:
    out = spec.job.out
    stray = [out / "clips/v00/masks/00077.png", out / "labels/clips/v00/labels_semantic/.9.png.part"]
    for path in stray:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    run_shard(spec, chain(spec))
    assert not any(path.exists() for path in stray)
