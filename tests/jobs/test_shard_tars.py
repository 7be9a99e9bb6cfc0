"""Clips out of tars: copied one by one beside the journal, gone when they are done, named by archive and member."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.jobs.job import ShardSpec
from openavs.jobs.shard import run_shard
from openavs.results.serialization import read_result
from openavs.structures.types import Clip, ClipResult
from tests.jobs.pool import planned, recipe, videos
from tests.jobs.test_shard import chain


@pytest.fixture
def spec(tmp_path: Path) -> ShardSpec:
    """Three clips in one tar."""
    folder = videos(tmp_path / "videos", 3)
    (tmp_path / "pool").mkdir()
    with tarfile.open(tmp_path / "pool/clips.tar", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return planned(tmp_path / "pool", recipe(tmp_path / "r"), tmp_path / "out")[2][0]


def copies(spec: ShardSpec) -> list[str]:
    """The files in the folder of the shard's copies."""
    return sorted(path.name for path in (spec.job.out / "work/000000").glob("*"))


def test_copies_are_there_while_they_are_needed_and_no_longer(spec: ShardSpec) -> None:
    good, seen = chain(spec), []

    def segment(clip: Clip) -> ClipResult:
        seen.append((clip.id, copies(spec)))
        return good(clip)

    mark = run_shard(spec, segment)
    assert mark is not None and mark["counts"] == {"ok": 3}
    assert all(f"{clip}.mp4" in there for clip, there in seen)
    assert [row["source"] for row in mark["rows"]] == [f"clips.tar::v{n:02}.mp4" for n in range(3)]
    assert read_result(spec.job.out, "v02").source == "clips.tar::v02.mp4"
    assert not (spec.job.out / "work/000000").exists()


def test_a_clip_that_is_written_needs_its_copy_no_more(spec: ShardSpec) -> None:
    there: list[list[str]] = []
    run_shard(spec, chain(spec), on_clip=lambda done: there.append([done.clip, *copies(spec)]))
    assert [(clip, f"{clip}.mp4" in left) for clip, *left in there] == [("v00", False), ("v01", False), ("v02", False)]


@pytest.mark.parametrize("stops", [True, False])
def test_copies_go_however_a_run_ends(spec: ShardSpec, stops: bool) -> None:
    def segment(clip: Clip) -> ClipResult:
        raise OSError(28, "No space left on device")

    if stops:
        assert run_shard(spec, chain(spec), stop=lambda: True) is None
    else:
        with pytest.raises(OSError, match="No space"):
            run_shard(spec, segment)
    assert not (spec.job.out / "work/000000").exists()


def test_what_a_killed_run_copied_is_removed_first(spec: ShardSpec) -> None:
    stray = spec.job.out / "work/000000/v09.mp4"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"of a killed run")
    good, seen = chain(spec), []

    def segment(clip: Clip) -> ClipResult:
        seen.append("v09.mp4" in copies(spec))
        return good(clip)

    run_shard(spec, segment)
    assert seen == [False] * 3


def test_an_error_names_the_file_in_the_tar(spec: ShardSpec) -> None:
    def segment(clip: Clip) -> ClipResult:
        raise InputError(f"{spec.job.out}/work/000000/{clip.id}.mp4 has no picture")

    mark = run_shard(spec, segment)
    assert mark is not None
    assert [row["detail"] for row in mark["rows"]] == [f"clips.tar::v{n:02}.mp4 has no picture" for n in range(3)]
