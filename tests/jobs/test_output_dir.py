"""Opening a job's folder: new, resumed, shared with another process, cleared, or refused."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError
from openavs.jobs.checkpoint import Entry, ShardJournal, complete, completed, journal_path
from openavs.jobs.locks import JOB, release
from openavs.jobs.manifest import JobRequest, read_manifest
from openavs.jobs.output_dir import open_folder, retry
from openavs.jobs.sample import Sample
from tests.jobs.test_locks import Other

pytestmark = pytest.mark.faults

ITEMS = tuple(Sample(f"c{n}", f"c{n}.mp4") for n in range(4))
WISH = JobRequest("folder", ITEMS, {"name": "r"}, shard_size=2)
OK: dict[str, Any] = {"status": "ok", "reason": None, "rejected": {}}
FAILED: dict[str, Any] = {"status": "failed", "reason": "missing", "rejected": {}}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out"


def commits(out: Path, *shards: tuple[dict[str, Any], ...]) -> None:
    """Commits shards of two clips by the fates of their clips."""
    plan = open_folder(out, WISH)
    for number, fates in enumerate(shards):
        rows: list[Entry] = [({"id": f"c{2 * number + place}", **fate}, {}) for place, fate in enumerate(fates)]
        complete(out, number, plan.key, rows)


def test_a_new_folder_is_created_and_an_old_one_resumed(out: Path) -> None:
    plan = open_folder(out, WISH)
    commits(out, (OK, FAILED))
    assert open_folder(out, replace(WISH, shard_size=None)) == plan == read_manifest(out)
    assert completed(out) == {0}, "what is done stays"
    with pytest.raises(InputError, match=r"^.*/deep/out holds results of another job, which differs in name"):
        open_folder(out, replace(WISH, recipe={"name": "s"}))


def test_new_files_of_clips_that_failed_are_taken_when_they_are_retried(out: Path) -> None:
    commits(out, (OK, FAILED), (OK, OK))
    fetched = replace(WISH, samples=(ITEMS[0], replace(ITEMS[1], bytes=7), *ITEMS[2:]))
    with pytest.raises(InputError, match=r"^1 clip of .* changed in size since, such as c1; --retry-failed"):
        open_folder(out, fetched)
    plan = open_folder(out, fetched, retry_failed=True)
    assert completed(out) == {1}, "what was done stays"
    assert open_folder(out, fetched) == plan
    spoilt = replace(WISH, samples=(replace(ITEMS[0], bytes=7), *fetched.samples[1:]))
    with pytest.raises(InputError, match=r"such as c0; .* new files of clips that failed, for others give") as refused:
        open_folder(out, spoilt, retry_failed=True)
    assert str(refused.value).endswith("give another --out or start again with --overwrite")


def test_while_it_is_open_others_of_the_same_plan_may_join(out: Path) -> None:
    open_folder(out, WISH)
    other = Other(out, JOB, "shared")
    assert other.taken
    other.kill()
    other = Other(out, JOB)
    assert not other.taken, "nobody may have it alone"
    other.kill()


def test_a_second_job_takes_the_plan_of_the_first_and_must_not_clear_it(out: Path) -> None:
    commits(out, (OK, FAILED))
    plan = open_folder(out, WISH)
    other = Other(out, JOB, "shared")
    assert other.taken
    assert open_folder(out, WISH) == plan
    with pytest.raises(InputError, match=r"^.*/deep/out holds results of another job, which differs in name"):
        open_folder(out, replace(WISH, recipe={"name": "s"}))
    with pytest.raises(InputError, match=r"at work on .*, and --overwrite needs it alone; wait for it or stop it"):
        open_folder(out, WISH, overwrite=True)
    with pytest.raises(InputError, match=r"at work on .*, and --retry-failed needs it alone"):
        open_folder(out, WISH, retry_failed=True)
    fetched = replace(WISH, samples=(ITEMS[0], replace(ITEMS[1], bytes=7), *ITEMS[2:]))
    with pytest.raises(InputError, match="changed in size since, such as c1"):
        open_folder(out, fetched)  # although c1 failed: the other job goes by its sizes
    other.kill()
    assert read_manifest(out) == plan


def test_who_comes_while_another_has_the_folder_alone_waits_and_has_its_share_then(out: Path) -> None:
    plan = open_folder(out, WISH)
    release(out, JOB)
    other = Other(out, JOB)
    ending = threading.Timer(0.5, other.kill)
    ending.start()
    assert open_folder(out, WISH) == plan
    ending.join()
    late = Other(out, JOB)
    assert not late.taken
    late.kill()


def test_another_that_ended_before_its_plan_was_there_is_said_so(out: Path) -> None:
    out.mkdir(parents=True)
    other = Other(out, JOB, "shared")
    with pytest.raises(InputError, match=r"just begun on .* and ended without a manifest; run the same"):
        open_folder(out, WISH)
    other.kill()


@pytest.mark.parametrize("name", ["clips/a/result.json", "labels", "predictions", "run.json"])
def test_what_no_job_wrote_is_left_alone(out: Path, name: str) -> None:
    (out / name).mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds other results \(.*\); give another --out, or remove them"):
        open_folder(out, WISH)
    assert (out / name).exists() and read_manifest(out) is None


def test_clearing_removes_what_a_job_wrote_and_nothing_else(out: Path) -> None:
    commits(out, (OK, OK))
    for name in ("labels/a/1.png", "clips/c0/result.json", "work/000001.jsonl", "log/a.jsonl", "notes.txt", "mine/x"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"x")
    for name in ("index.jsonl", "index.parquet", "run.json", "work/models.json"):
        (out / name).write_bytes(b"x")
    other = replace(WISH, recipe={"name": "s"})
    assert open_folder(out, other, overwrite=True) == read_manifest(out)
    left = {path.name for path in out.iterdir()}
    assert left == {".lock", "mine", "notes.txt", "manifest.jsonl", "work"}


@pytest.mark.parametrize("name", ["labels/1.txt", "predictions/1.txt", "log/mine.txt", "work/mine.txt"])
def test_clearing_refuses_where_files_that_no_job_wrote_are_in_the_way(out: Path, name: str) -> None:
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(b"mine")
    with pytest.raises(InputError, match="exists, and no job wrote it; give another --out, or remove it yourself"):
        open_folder(out, WISH, overwrite=True)
    assert (out / name).read_bytes() == b"mine"


def test_clearing_removes_the_results_of_other_commands(out: Path) -> None:
    (out / "clips" / "a").mkdir(parents=True)
    for name in ("clips/a/result.json", "run.json", "index.jsonl"):
        (out / name).write_bytes(b"x")
    assert open_folder(out, WISH, overwrite=True) == read_manifest(out)
    assert {path.name for path in out.iterdir()} == {".lock", "manifest.jsonl", "work"}


def test_where_nothing_is_there_to_be_cleared_a_job_is_new(out: Path) -> None:
    assert open_folder(out, WISH, overwrite=True) == read_manifest(out)


def test_retry_failed_removes_the_rows_of_failed_clips(out: Path) -> None:
    commits(out, (OK, FAILED), (OK, OK))
    open_folder(out, WISH)
    assert completed(out) == {0, 1}
    open_folder(out, WISH, retry_failed=True)
    assert completed(out) == {1}
    assert set(ShardJournal.read(journal_path(out, 0)).finished) == {"c0"}


def test_the_clips_that_are_tried_again_are_counted(out: Path) -> None:
    commits(out, (FAILED, FAILED), (FAILED, OK))
    plan = open_folder(out, WISH)
    assert retry(out, plan) == 3
    assert retry(out, plan) == 0


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot make the output folder .*file/out \(Not a directory\); give another"):
        open_folder(tmp_path / "file" / "out", WISH)


def test_a_link_in_the_place_of_results_is_not_followed(out: Path, tmp_path: Path) -> None:
    out.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (out / "clips").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="link"):
        open_folder(out, WISH, overwrite=True)
    assert (tmp_path / "elsewhere").is_dir()


def test_files_in_the_place_of_a_clip_are_neither_replaced_nor_removed(out: Path) -> None:
    for name in ("clips/c1/0.jpg", "clips/film.mp4"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="clips/c1 holds other files, and the clip's result would replace them"):
            open_folder(out, WISH, overwrite=overwrite)
    assert (out / "clips/c1/0.jpg").read_bytes() == b"mine"
    (out / "clips/c1/0.jpg").unlink()
    plan = open_folder(out, WISH)
    assert open_folder(out, WISH, overwrite=True).key == plan.key
    assert (out / "clips/film.mp4").read_bytes() == b"mine"


# -------------------------------------------------------------------------------------------------------- open folders

OPEN = JobRequest("segment", ITEMS[:2], {"name": "r"}, command="segment")


def test_another_recipe_takes_a_folder_in_which_every_clip_failed(out: Path) -> None:
    key, other = open_folder(out, OPEN).key, replace(OPEN, recipe={"name": "s"})
    complete(out, 0, key, [({"id": "c0", **FAILED}, {})])
    complete(out, 1, key, [({"id": "c1", **FAILED}, {})])
    result = out / "clips" / "c0" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    with pytest.raises(InputError, match="holds results of another recipe, which differs in name"):
        open_folder(out, other)
    assert completed(out) == {0, 1}
    result.unlink()
    plan = open_folder(out, other)
    assert plan.key != key and plan == read_manifest(out) and completed(out) == set()


def test_clips_are_added_and_failed_ones_run_again(out: Path) -> None:
    plan = open_folder(out, OPEN)
    complete(out, 0, plan.key, [({"id": "c0", **OK}, {})])
    complete(out, 1, plan.key, [({"id": "c1", **FAILED}, {})])
    more = replace(OPEN, samples=(ITEMS[3], ITEMS[0]))
    assert open_folder(out, more).requested == (2, 0)
    assert completed(out) == {0, 1}, "c1 is not asked for"
    open_folder(out, OPEN)
    assert completed(out) == {0}


def test_a_replaced_file_is_taken_unless_its_clip_is_done(out: Path) -> None:
    plan = open_folder(out, OPEN)
    complete(out, 0, plan.key, [({"id": "c0", **OK}, {})])
    open_folder(out, replace(OPEN, samples=(ITEMS[0], replace(ITEMS[1], bytes=7))))
    with pytest.raises(InputError, match=r"1 clip of .* changed in size since, such as c0; give another --out"):
        open_folder(out, replace(OPEN, samples=(replace(ITEMS[0], bytes=7),)))


def test_new_clips_need_the_folder_alone(out: Path) -> None:
    plan = open_folder(out, OPEN)
    other = Other(out, JOB, "shared")
    assert open_folder(out, OPEN) == plan
    with pytest.raises(InputError, match=r"another job is at work on .*, and new clips need it alone; wait for it"):
        open_folder(out, replace(OPEN, samples=ITEMS))
    other.kill()
