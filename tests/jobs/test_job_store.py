"""Result folders on an object store: the same files as in a local folder, whatever happens to runs and requests."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from openavs.config.recipe import load_recipe
from openavs.errors import InputError, StoreError
from openavs.jobs import job_store
from openavs.jobs.checkpoint import ShardJournal
from openavs.jobs.job import Job
from openavs.jobs.job_store import ALIVE, JobStore, scratch_of
from openavs.jobs.locks import FIRST_SHARD, claim, release
from openavs.jobs.manifest import JobRequest
from openavs.jobs.output_dir import open_folder, reopen_changed
from openavs.jobs.progress import JobProgress
from openavs.jobs.run import run_job
from openavs.jobs.shard import InlineExecutor
from openavs.labeling.open import open_source
from openavs.utils import objects
from openavs.utils.objects import ObjectStore
from tests.jobs.pool import LABELS, planned, recipe, tree, videos
from tests.jobs.stores import fetch, upload

CLIPS, OUT = "memory://bucket/clips", "memory://bucket/labels"
SCRATCH = f"openavs-jobs-{os.getuid() if hasattr(os, 'getuid') else ''}"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = videos(tmp_path_factory.mktemp("pool") / "videos", 5, seconds=1)
    (folder / "v01.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def whole(pool: Path, made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tree of a local job."""
    job, plan, _ = planned(pool, made, tmp_path_factory.mktemp("whole") / "out", shard_size=2)
    run_job(job, plan, InlineExecutor(), JobProgress(job, plan, range(plan.shards), {}))
    return tree(job.out)


@pytest.fixture(autouse=True)
def clips(pool: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(job_store.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(job_store, "POLL", 0.01)
    monkeypatch.setattr(objects, "RETRIES", (0.0, 0.0, 0.0))
    upload(pool, CLIPS)
    yield
    MemoryFileSystem.store.clear()


class Killed(BaseException):
    """Stands for the end of the process."""


def run(store: JobStore, made: Path, *, kill_after: int | None = None, source: str = CLIPS, **how: bool) -> JobProgress:
    """Run as `openavs label` does; `kill_after` that many clips the process ends."""
    chosen, found = load_recipe(made), open_source(source)
    verify = how.pop("verify", False)
    plan = open_folder(store.out, JobRequest(found.kind, found.samples, chosen.to_dict(), shard_size=2), **how)
    job = Job(
        store.out, plan.key, found.root, chosen.to_dict(), base=chosen.base, sink=LABELS,
        source=found.url, store=store.url, owner=store.owner,
    )  # fmt: skip
    numbers = range(plan.shards)
    reopen_changed(store.out, plan.key, numbers, verify=verify)
    progress = JobProgress(job, plan, numbers, {})

    def on_clip(done: Any) -> None:
        if progress.worked == kill_after:
            raise Killed

    progress.on_clip = on_clip
    run_job(job, plan, InlineExecutor(), progress)
    return progress


def kill(made: Path, after: int, tmp_path: Path) -> None:
    """A run that ends like a killed process after some clips: its claims and its scratch folder stay."""
    store = job_store.attach(tmp_path / SCRATCH / "killed", OUT, "killed")
    with pytest.raises(Killed):
        run(store, made, kill_after=after)
    store._closed.set()
    store._alive.close()
    del job_store._stores[store.out]


def result(tmp_path: Path, name: str = "got") -> dict[str, str]:
    return tree(fetch(OUT, tmp_path / name))


def test_a_job_on_a_store_writes_what_a_local_one_writes(made: Path, whole: dict[str, str], tmp_path: Path) -> None:
    with scratch_of(OUT) as store:
        progress = run(store, made)
        assert (progress.worked, progress.status["failed"]) == (5, 1)
        assert not any((store.out / "clips").rglob("*.json")), "what is published is not kept here"
    assert result(tmp_path) == whole
    assert list((tmp_path / SCRATCH).iterdir()) == []
    with scratch_of(OUT) as store:
        assert run(store, made).worked == 0
    assert result(tmp_path, "again") == whole


def test_a_store_as_the_source_of_a_local_job(made: Path, whole: dict[str, str], tmp_path: Path) -> None:
    chosen, found = load_recipe(made), open_source(CLIPS)
    plan = open_folder(tmp_path / "out", JobRequest(found.kind, found.samples, chosen.to_dict(), shard_size=2))
    job = Job(tmp_path / "out", plan.key, found.root, chosen.to_dict(), base=chosen.base, sink=LABELS, source=found.url)
    run_job(job, plan, InlineExecutor(), JobProgress(job, plan, range(plan.shards), {}))
    assert tree(tmp_path / "out") == whole


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_killed_run_is_resumed_clip_by_clip(made: Path, whole: dict[str, str], tmp_path: Path, after: int) -> None:
    kill(made, after, tmp_path)
    assert any(name.startswith("work/claims/") for name in ObjectStore(OUT).find())
    with scratch_of(OUT) as store:
        assert run(store, made).worked <= 5 - after, "finished clips are not run again"
    assert result(tmp_path) == whole
    assert list((tmp_path / SCRATCH).iterdir()) == [], "the killed run's scratch folder is removed"


def test_a_lost_or_changed_object_of_an_unfinished_shard_is_made_again(
    made: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    kill(made, 3, tmp_path)
    left = [name for name in ObjectStore(OUT).find("work/journal") if b'"row"' in ObjectStore(OUT).get(name)]
    assert left, "a shard is under way"
    clip = Path(left[0]).stem
    ObjectStore(OUT).put({f"clips/{clip}/result.json": ObjectStore(OUT).get(f"clips/{clip}/result.json")[::-1]})
    with scratch_of(OUT) as store:
        run(store, made)
    assert result(tmp_path) == whole


def test_verify_finds_lost_and_changed_objects_of_finished_shards(
    made: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    with scratch_of(OUT) as store:
        run(store, made)
    folder = ObjectStore(OUT)
    folder.remove(["clips/v00/result.json"])
    name = "labels/clips/v04/labels_semantic/0.png"
    folder.put({name: folder.get(name)[::-1]})
    with scratch_of(OUT) as store:
        assert run(store, made, verify=True).worked == 2
    assert result(tmp_path) == whole


def test_a_clip_that_fails_on_its_second_run_leaves_no_objects(made: Path, pool: Path, tmp_path: Path) -> None:
    with scratch_of(OUT) as store:
        run(store, made)
    ObjectStore(OUT).remove(["clips/v00/result.json"])
    ObjectStore(CLIPS).put({"v00.mp4": b"#" * (pool / "v00.mp4").stat().st_size})
    with scratch_of(OUT) as store:
        assert run(store, made, verify=True).status["failed"] == 2
    assert not [name for name in ObjectStore(OUT).find() if "/v00/" in name]


def test_failed_clips_are_retried_with_their_new_files(
    made: Path, pool: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    with scratch_of(OUT) as store:
        run(store, made)
    ObjectStore(CLIPS).put({"v01.mp4": (pool / "v00.mp4").read_bytes()})
    with pytest.raises(InputError, match=f"clip of {OUT} changed in size since"), scratch_of(OUT) as store:
        run(store, made)
    with scratch_of(OUT) as store:
        progress = run(store, made, retry_failed=True)
    assert (progress.worked, progress.status["ok"]) == (1, 5)


def test_another_job_is_refused_and_overwrite_removes_what_openavs_wrote(
    made: Path, pool: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    with scratch_of(OUT) as store:
        run(store, made)
    ObjectStore(OUT).put({"clips/mine.txt": b"kept", "labels/clips/v00/mine.png": b"kept"})
    upload(pool, "memory://bucket/more")
    ObjectStore("memory://bucket/more").put({"w.mp4": (pool / "v00.mp4").read_bytes()})
    with pytest.raises(InputError, match=f"{OUT} holds results of another job.*1 clip more"), scratch_of(OUT) as store:
        run(store, made, source="memory://bucket/more")
    with pytest.raises(InputError, match=r"holds other results \(clips\)"), scratch_of(OUT) as store:
        run(store, made, overwrite=True)
    kept = {"clips/mine.txt", "labels/clips/v00/mine.png"}
    assert set(ObjectStore(OUT).find()) == kept
    ObjectStore(OUT).remove(kept)
    with scratch_of(OUT) as store:
        run(store, made, overwrite=True)
    assert result(tmp_path) == whole


def test_requests_that_fail_now_and_then_change_nothing(
    made: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, failed = random.Random(7), []
    for method in ("cat_file", "pipe_file", "put_file", "find", "info", "rm_file"):
        real = getattr(MemoryFileSystem, method)

        @wraps(real)
        def request(self: Any, *args: Any, real: Any = real, method: str = method, **options: Any) -> Any:
            if chance.random() < 0.05:
                failed.append(method)
                raise ConnectionError("reset by peer")
            return real(self, *args, **options)

        monkeypatch.setattr(MemoryFileSystem, method, request)
    with scratch_of(OUT) as store:
        run(store, made)
    monkeypatch.undo()
    assert len(set(failed)) > 2
    assert result(tmp_path) == whole


def test_a_store_that_goes_away_ends_the_job_with_a_sentence_and_the_next_run_resumes(
    made: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = MemoryFileSystem.pipe_file, [20]

    @wraps(real)
    def pipe_file(self: Any, *args: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionError("no route to host")
        real(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
        with pytest.raises(StoreError, match="could not be reached in 4 attempts"), scratch_of(OUT) as store:
            run(store, made)
    with scratch_of(OUT) as store:
        assert 0 < run(store, made).worked < 5
    assert result(tmp_path) == whole


def test_a_store_that_goes_away_at_the_end_leaves_nothing_after_the_next_run(
    made: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The completion object is written, and the claim and the journal cannot be removed."""

    def rm_file(self: Any, path: str) -> None:
        raise ConnectionError("no route to host")

    with monkeypatch.context() as patch, pytest.raises(StoreError), scratch_of(OUT) as store:
        patch.setattr(MemoryFileSystem, "rm_file", rm_file)
        run(store, made)
    assert ObjectStore(OUT).find("work/claims")
    with scratch_of(OUT) as store:
        run(store, made)
    assert result(tmp_path) == whole
    assert list((tmp_path / SCRATCH).iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- claims


_others: list[JobStore] = []


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """The other runs of a test renew their claims no longer than the test."""
    yield
    while _others:
        _others.pop().close()


def other(tmp_path: Path, name: str) -> JobStore:
    _others.append(JobStore(tmp_path / name, OUT, name))
    return _others[-1]


def test_a_shard_is_claimed_by_one_run_and_by_all_its_processes(tmp_path: Path) -> None:
    first, second = other(tmp_path, "a"), other(tmp_path, "b")
    assert first.claim("000001")
    assert not second.claim("000001")
    assert second.claim("000002")
    worker = other(tmp_path, "a")
    assert worker.claim("000001"), "a new worker in the place of one that crashed"
    first.release("000001")
    assert second.claim("000001")


def test_the_locks_of_a_scratch_folder_are_claims(tmp_path: Path) -> None:
    with scratch_of(OUT) as store:
        second = other(tmp_path, "b")
        assert claim(store.out, FIRST_SHARD + 7)
        assert not second.claim("000007")
        release(store.out, FIRST_SHARD + 7)
        assert second.claim("000007")
        assert not claim(store.out, FIRST_SHARD + 7)


def test_the_claim_of_a_run_that_ended_on_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    first, second = other(tmp_path, "a"), other(tmp_path, "b")
    first.claim("000001")
    assert not second.claim("000001")
    first._closed.set()
    first._alive.close()
    assert (first.out / ALIVE).is_file()
    assert second.claim("000001")
    assert list(second.objects.find("work/claims")) == ["work/claims/000001.1"]


def test_the_claim_of_a_dead_run_elsewhere_is_taken_over_after_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(job_store.time, "monotonic", lambda: now[0])
    first, second, third = (other(tmp_path, name) for name in "abc")
    first.claim("000001")
    first._closed.set()
    shutil.rmtree(first.out)  # it is on another machine
    assert not second.claim("000001")
    now[0] += job_store.LEASE - 1
    assert not second.claim("000001")
    assert not third.claim("000001"), "the third sees it for the first time"
    now[0] += 2
    assert second.claim("000001")
    now[0] += job_store.LEASE - 10
    assert not third.claim("000001"), "the claim has another owner since"


def test_a_renewed_claim_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_store, "LEASE", 0.8)
    first, second = other(tmp_path, "a"), other(tmp_path, "b")
    first.claim("000001")
    (first.out / ALIVE).unlink()  # as on another machine
    for _ in range(20):
        assert not second.claim("000001")
        job_store.time.sleep(0.1)
    first._closed.set()
    assert second.claim("000001", wait=True)


def test_overwriting_is_refused_while_another_run_is_at_work(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_store, "LEASE", 0.8)
    with scratch_of(OUT) as store:
        run(store, made)
    busy = other(tmp_path, "busy")
    busy.claim("run-busy")
    with pytest.raises(InputError, match=f"another job is at work on {OUT}, and --overwrite"), scratch_of(OUT) as store:
        run(store, made, overwrite=True)
    busy._closed.set()
    busy._heart.join()
    with scratch_of(OUT) as store:
        assert run(store, made, overwrite=True).worked == 5


def test_two_runs_that_both_believe_to_have_all_claims_write_the_same(
    made: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(made, 3, tmp_path)
    monkeypatch.setattr(JobStore, "_claim", lambda self, name: True)
    monkeypatch.setattr(JobStore, "_look", lambda self: {})
    with scratch_of(OUT) as late, scratch_of(OUT) as early:
        run(early, made)
        run(late, made)
    monkeypatch.undo()
    ObjectStore(OUT).remove(ObjectStore(OUT).find("work/claims"))
    assert result(tmp_path) == whole


def test_who_creates_the_manifest_decides_which_job_it_is(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs open an empty folder at a time, in spite of the claim."""
    real = JobStore.push_changed

    def late(self: JobStore, name: str, *, new: bool = False) -> bool:
        if new:
            self.objects.put({name: b"another manifest"})
        return real(self, name, new=new)

    monkeypatch.setattr(JobStore, "push_changed", late)
    with pytest.raises(InputError, match="another job has just begun"), scratch_of(OUT) as store:
        run(store, made)


# ------------------------------------------------------------------------------------------------------------ journal


def test_the_journal_on_the_store_names_the_clips_under_way(made: Path, tmp_path: Path) -> None:
    kill(made, 1, tmp_path)
    store = job_store.attach(tmp_path / SCRATCH / "reader", OUT, "reader")
    begun = ShardJournal.open(store.out, 0)
    assert set(begun.finished) == {"v00"}
    assert begun.begun == {"v01"} or set(begun.finished) == {"v00", "v01"}
    begun.start()
    assert ShardJournal.open(store.out, 0).begun == set(), "a new run has begun nothing yet"
    begun.begin("v01")
    begun.lay_aside("v01")
    assert ShardJournal.open(store.out, 0).begun == set()
    job_store.detach(store.out)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owners")
def test_a_scratch_folder_that_another_user_could_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / SCRATCH).symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(InputError, match=f"{SCRATCH} belongs to another user, or is a link; set TMPDIR"),
        scratch_of(OUT),
    ):
        pass
    other = os.getuid() + 1
    monkeypatch.setattr(job_store.os, "getuid", lambda: other)
    with pytest.raises(InputError, match=f"openavs-jobs-{other} belongs to another user"), scratch_of(OUT):
        pass


def test_overwrite_survives_damaged_records_and_removes_nothing_outside_the_folder() -> None:
    store = ObjectStore("memory://bucket")
    outside = b'{"files": {"../kept": "1:a"}, "row": {}}'
    damaged = (b"no json", b"[1]", b'{"files": 3}', b'{"rows": [], "files": {"a": 1}}', outside)
    store.put({"kept": b"x", **{f"labels/work/journal/000000/{i}.json": own for i, own in enumerate(damaged)}})
    with scratch_of(OUT) as folder:
        folder.clear()
    assert set(store.find()) & {"kept", "labels/work/journal/000000/0.json"} == {"kept"}
