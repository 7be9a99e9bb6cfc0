"""Result files that are lost or changed after their shard was committed are made again."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from openavs.jobs.checkpoint import completion_path, read_completion
from openavs.jobs.job import ShardSpec
from openavs.jobs.output_dir import reopen_changed
from openavs.jobs.shard import run_shard
from tests.conftest import Outcome
from tests.jobs.pool import planned, tree
from tests.jobs.test_shard import chain
from tests.robustness.faults.conftest import ended, start

Openavs = Callable[..., Outcome]
Damage = Callable[[Path], object]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def leave(path: Path, make: Callable[[], object]) -> None:
    """Puts something else in a file's place."""
    path.unlink()
    make()


def linked(path: Path) -> None:
    """Moves a file away and leaves a link to it."""
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


SAME_SIZE: dict[str, Damage] = {
    "bit flip": flip,
    "garbage": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}
FINISHED: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "gone": Path.unlink,
    "link": linked,
    **SAME_SIZE,
}
UNDER_WAY: dict[str, Damage] = {
    **FINISHED,
    "folder gone": lambda path: shutil.rmtree(path.parent),
    "dangling link": lambda path: leave(path, lambda: path.symlink_to("nothing")),
    "link loop": lambda path: leave(path, lambda: path.symlink_to(path.name)),
    "folder": lambda path: leave(path, path.mkdir),
    "FIFO": lambda path: leave(path, lambda: os.mkfifo(path)),
}
FILES = {
    "result": "clips/v01/result.json",
    "mask": "clips/v01/masks/00000.png",
    "label": "labels/clips/v01/labels_semantic/0.png",
}
DAMAGES = [
    *(("under way", kind, file) for kind in UNDER_WAY for file in FILES),
    *(("finished", kind, file) for kind in FINISHED for file in FILES),
]


@pytest.fixture(scope="module")
def states(pool: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job with one of its two shards committed, and that of the finished job."""
    top = tmp_path_factory.mktemp("states")
    for state, count in (("under way", 1), ("finished", 2)):
        for spec in planned(pool, recipe, top / state, shard_size=3)[2][:count]:
            run_shard(spec, chain(spec))
    return top


@pytest.fixture
def copied(states: Path, pool: Path, recipe: Path, tmp_path: Path) -> Callable[[str], list[ShardSpec]]:
    def copy(state: str) -> list[ShardSpec]:
        """The shards of a copy of a job."""
        shutil.copytree(states / state, tmp_path / "out")
        return planned(pool, recipe, tmp_path / "out", shard_size=3)[2]

    return copy


def finish(specs: list[ShardSpec]) -> dict[str, str]:
    for spec in specs:
        run_shard(spec, chain(spec))
    return {name: digest for name, digest in tree(specs[0].job.out).items() if name != "work"}


def test_there_are_63_damages() -> None:
    assert len(DAMAGES) == 63


@pytest.mark.parametrize(("state", "kind", "file"), DAMAGES)
def test_every_damage_is_noticed_and_made_again(
    states: Path, copied: Callable[[str], list[ShardSpec]], state: str, kind: str, file: str
) -> None:
    specs = copied(state)
    job = specs[0].job
    UNDER_WAY[kind](job.out / FILES[file])
    assert reopen_changed(job.out, job.key, range(2), verify=kind in SAME_SIZE) == ["v01"]
    whole = {name: digest for name, digest in tree(states / "finished").items() if name != "work"}
    assert finish(specs) == whole
    assert reopen_changed(job.out, job.key, range(2), verify=True) == []


@pytest.mark.parametrize("kind", SAME_SIZE)
def test_a_change_that_keeps_the_size_takes_verify(copied: Callable[[str], list[ShardSpec]], kind: str) -> None:
    job = copied("finished")[0].job
    SAME_SIZE[kind](job.out / FILES["mask"])
    assert reopen_changed(job.out, job.key, range(2)) == []
    assert reopen_changed(job.out, job.key, range(2), verify=True) == ["v01"]


def test_a_hash_that_was_changed_in_a_mark_is_noticed(copied: Callable[[str], list[ShardSpec]]) -> None:
    job = copied("finished")[0].job
    mark = read_completion(job.out, 0, job.key)
    assert mark is not None
    stamp = mark["files"]["v02"]["clips/v02/result.json"]
    path = completion_path(job.out, 0)
    path.write_bytes(path.read_bytes().replace(stamp.encode(), f"{stamp[:-1]}{int(stamp[-1], 16) ^ 1:x}".encode()))
    assert reopen_changed(job.out, job.key, range(2), verify=True) == ["v02"]


def test_only_the_requested_shards_are_checked(copied: Callable[[str], list[ShardSpec]]) -> None:
    job = copied("finished")[0].job
    for clip in ("v01", "v04"):
        (job.out / f"clips/{clip}/result.json").unlink()
    assert reopen_changed(job.out, job.key, [1]) == ["v04"]
    assert reopen_changed(job.out, job.key, [1]) == []
    assert reopen_changed(job.out, job.key, [0, 1]) == ["v01"]


def test_the_same_command_makes_lost_files_again_and_says_so(
    openavs: Openavs, pool: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("label", pool, "--pipeline", recipe, "--out", out, "--workers", "1", "--shard-size", "3", "--no-cache")
    assert openavs(*words).code == 0
    whole = tree(out)
    shutil.rmtree(out / "labels/clips/v05")
    (out / "clips/v00/masks/00001.png").write_bytes(b"x")
    flip(out / "labels/clips/v01/labels_semantic/1.png")
    again = openavs(*words, "--json")
    assert (again.code, again.json()["worked"]) == (0, 3), "the hashes of a shard that is reopened are checked, too"
    assert "the files of 2 finished clips were lost or changed, such as those of v00; they are made again" in again.err
    assert tree(out) == whole
    flip(out / "labels/clips/v04/labels_semantic/1.png")
    assert openavs(*words, "--json").json()["worked"] == 0
    assert openavs(*words, "--json", "--verify").json()["worked"] == 1
    assert tree(out) == whole


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_results_that_a_failing_disk_does_not_give_are_one_sentence_and_are_kept(
    openavs: Openavs,
    states: Path,
    pool: Path,
    recipe: Path,
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = shutil.copytree(states / "finished", tmp_path / "out")
    before, really = tree(out), os.lstat

    def refusing(path: object, *args: object, **options: object) -> os.stat_result:
        if str(path).endswith(FILES["mask"]):
            raise OSError(number, os.strerror(number), str(path))
        return really(path, *args, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(os, "lstat", refusing)
    said = openavs("label", pool, "--pipeline", recipe, "--out", out, "--shard-size", "3", "--no-cache")
    assert (said.code, "Traceback" in said.err) == (2, False)
    assert f"{out}/{FILES['mask']} cannot be read or written ({os.strerror(number)})" in said.err
    monkeypatch.undo()
    assert tree(out) == before


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        *((kind, "result.json") for kind in ("empty", "half", "gone", "folder", "FIFO")),
        *((kind, "masks/00001.png") for kind in ("empty", "gone", "link", "folder gone", "folder", "FIFO")),
        *((kind, file) for kind in ("empty", "gone") for file in ("overlay.mp4", "report.html", "video.mp4")),
    ],
)
def test_segment_makes_a_clip_again_whose_files_are_lost(
    openavs: Openavs, segmented: Path, pool: Path, recipe: Path, tmp_path: Path, kind: str, file: str
) -> None:
    shutil.copytree(segmented, tmp_path / "out")
    UNDER_WAY[kind](tmp_path / "out/clips/v00" / file)
    command = ("segment", pool / "v00.mp4", pool / "v01.mp4", "--pipeline", recipe, "--out", tmp_path / "out", "--json")
    again = openavs(*command)
    assert again.code == 0, again.err
    assert [clip["seconds"] > 0 for clip in again.json()["clips"]] == [True, False]
    for name in ("result.json", "masks/00000.png", "masks/00001.png", "overlay.mp4", "report.html", "video.mp4"):
        assert (tmp_path / "out/clips/v00" / name).stat().st_size > 0
    assert [clip["seconds"] for clip in openavs(*command).json()["clips"]] == [0, 0]


@pytest.fixture(scope="module")
def segmented(pool: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segmented") / "out"
    words = ("segment", pool / "v00.mp4", pool / "v01.mp4", "--pipeline", recipe, "--out", out)
    assert ended(start(*words)).code == 0
    return out
