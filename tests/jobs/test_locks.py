"""Locks that end with their process."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from openavs.jobs import locks as claims
from openavs.jobs.executors.local import LocalExecutor
from openavs.jobs.job import Job, ProgressListener, ShardSpec
from openavs.jobs.locks import FIRST_SHARD, JOB, claim, claimed, release
from openavs.jobs.manifest import Manifest
from openavs.jobs.progress import JobProgress
from openavs.jobs.run import run_job
from openavs.jobs.shard import ShardLockedError, run_shard
from openavs.structures.types import Clip, ClipResult
from openavs.utils.fs import _umask
from tests.jobs.pool import ROOT, planned, recipe, videos
from tests.jobs.test_shard import chain

pytestmark = pytest.mark.faults

HOLDS = """
import sys
from pathlib import Path
from openavs.utils.fs import _umask
from openavs.jobs import locks as claims
from openavs.jobs.locks import claim

print(claim(Path(sys.argv[1]), int(sys.argv[2]), shared=len(sys.argv) > 3), flush=True)
sys.stdin.read()
"""


class Other:
    """Another process that holds a lock until it is ended."""

    def __init__(self, out: Path, byte: int, *shared: str) -> None:
        command = [sys.executable, "-c", HOLDS, str(out), str(byte), *shared]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, bufsize=1
        )
        assert self.process.stdout is not None
        self.taken = self.process.stdout.readline().strip() == "True"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def test_a_claim_keeps_others_out_and_ends_with_a_kill(tmp_path: Path) -> None:
    other = Other(tmp_path, 5)
    assert other.taken
    assert not claim(tmp_path, 5)
    assert claim(tmp_path, 6), "each byte is a lock of its own"
    other.kill()
    assert claim(tmp_path, 5)
    release(tmp_path, 5)
    release(tmp_path, 6)


def test_a_shared_claim_is_shared_and_no_more(tmp_path: Path) -> None:
    assert claim(tmp_path, 0, shared=True)
    other = Other(tmp_path, 0, "shared")
    assert other.taken
    assert not claim(tmp_path, 0), "not to be had alone while another shares it"
    other.kill()
    with claimed(tmp_path, 0) as alone:
        assert alone


def test_a_folder_that_was_created_again_has_new_locks(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert claim(out, 1)
    (out / ".lock").unlink()
    other = Other(out, 1)
    assert other.taken
    assert not claim(out, 1)
    other.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_however_often_it_is_claimed_one_file_is_open(tmp_path: Path) -> None:
    claim(tmp_path, 1)
    before = len(os.listdir("/proc/self/fd"))
    for byte in range(50):
        assert claim(tmp_path, byte)
    assert len(os.listdir("/proc/self/fd")) == before
    assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o666 & ~_umask(), "a file that is shared and is no program"


def test_a_removed_lock_is_created_again_by_the_first_process(tmp_path: Path) -> None:
    assert claim(tmp_path, 1)
    (tmp_path / ".lock").unlink()
    assert claim(tmp_path, 1)
    other = Other(tmp_path, 1)
    assert not other.taken
    other.kill()


@pytest.mark.parametrize("number", [0, 1])
def test_a_shard_that_another_process_holds_is_busy(tmp_path: Path, number: int) -> None:
    made = planned(videos(tmp_path / "v", 2), recipe(tmp_path / "r"), tmp_path / "out", shard_size=1)
    other = Other(tmp_path / "out", FIRST_SHARD + number)

    def never(clip: object) -> None:
        raise AssertionError("it is not ours")

    with pytest.raises(ShardLockedError, match=f"^shard {number} of {tmp_path}/out$"):
        run_shard(made[2][number], never)  # type: ignore[arg-type]
    other.kill()


def test_a_shard_at_work_shares_the_job_with_others(tmp_path: Path) -> None:
    spec = planned(videos(tmp_path / "v", 1), recipe(tmp_path / "r"), tmp_path / "out")[2][0]
    release(tmp_path / "out", JOB)
    taken: list[tuple[bool, bool]] = []

    def segment(clip: Clip) -> ClipResult:
        for shared in ("shared", ""):
            other = Other(tmp_path / "out", JOB, *filter(None, [shared]))
            taken.append((bool(shared), other.taken))
            other.kill()
        return chain(spec)(clip)

    run_shard(spec, segment)
    assert taken == [(True, True), (False, False)]


@dataclass
class HeldElsewhere:
    """An executor whose only shard another process holds, and commits and releases half a second later."""

    plan: Manifest
    runs: int = 0

    def run(self, job: Job, shards: Iterable[ShardSpec], watch: ProgressListener) -> None:
        self.runs += 1
        if self.runs > 1:
            return
        specs = list(shards)
        LocalExecutor(1).run(job, specs, JobProgress(job, self.plan, [0], {}))
        mark, away = job.out / "work/shards/000000.json", job.out / "mark"
        mark.rename(away)
        other = Other(job.out, FIRST_SHARD)
        watch.busy(specs[0])

        def complete() -> None:
            away.rename(mark)
            other.kill()

        threading.Timer(0.5, complete).start()


def test_what_another_job_commits_needs_no_worker_of_ours(tmp_path: Path) -> None:
    job, plan, _ = planned(videos(tmp_path / "v", 1), recipe(tmp_path / "r"), tmp_path / "out")
    engine, board = HeldElsewhere(plan), JobProgress(job, plan, [0], {})
    run_job(job, plan, engine, board)
    assert engine.runs == 1 and board.counts == {"ok": 1}


TELLS = """
import sys
from pathlib import Path
from openavs.jobs.progress import JobProgress, check_models
from openavs.jobs.index import write_index
from openavs.jobs.job import Job
from openavs.jobs.manifest import read_manifest

out = Path(sys.argv[1])
plan = read_manifest(out)
board = JobProgress(Job(out, plan.key, out, plan.data["recipe"]), plan, [0], {})
for turn in range(100):
    board.save("running")
    begun = out / "begun" / str(turn)
    begun.mkdir(parents=True, exist_ok=True)
    check_models(begun, {"a/model": {"revision": "1"}})
    if turn % 10 == 0:
        write_index(out, plan)
"""


@pytest.mark.parametrize("locks", ["kept", "not kept"])
def test_many_jobs_write_run_json_at_once_without_conflict(tmp_path: Path, locks: str) -> None:
    """As the tasks of a job array do, which all write `run.json`; on some file systems without locks."""
    planned(videos(tmp_path / "v", 1), recipe(tmp_path / "r"), tmp_path / "out")
    without = "from openavs.jobs import locks; locks.fcntl = None\n" if locks == "not kept" else ""
    command = [sys.executable, "-c", without + TELLS, str(tmp_path / "out")]
    jobs = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [(job.communicate(timeout=120)[1], job.returncode) for job in jobs] == [("", 0)] * 3
    assert json.loads((tmp_path / "out/run.json").read_bytes())["status"] == "running"
    assert not list((tmp_path / "out").rglob("*.part"))


def test_who_ends_last_says_that_all_is_done(tmp_path: Path) -> None:
    """Its last look comes after the other's last word, so that `run.json` cannot fall back from `finished`."""
    job, plan, specs = planned(videos(tmp_path / "v", 1), recipe(tmp_path / "r"), tmp_path / "out")
    slow, quick = JobProgress(job, plan, [], {}), JobProgress(job, plan, [0], {})
    LocalExecutor(1).run(job, specs, quick)
    assert not slow.shards
    assert quick.save("stopped")["status"] == "finished"
    assert slow.save("stopped")["status"] == "finished"


ENDS = """
import sys
from pathlib import Path
from openavs.jobs.locks import JOB, claim
from openavs.jobs.job import Job
from openavs.jobs.run import run_job
from openavs.jobs.progress import JobProgress
from openavs.jobs.manifest import read_manifest

out = Path(sys.argv[1])
claim(out, JOB, shared=True)
plan = read_manifest(out)
job = Job(out, plan.key, out, plan.data["recipe"])
board = JobProgress(job, plan, [0], {})
print(board.missing, flush=True)
sys.stdin.readline()
run_job(job, plan, None, board)
"""


def test_of_two_jobs_that_end_the_last_one_clears_up(tmp_path: Path) -> None:
    job, plan, specs = planned(videos(tmp_path / "v", 1), recipe(tmp_path / "r"), tmp_path / "out")
    board = JobProgress(job, plan, [0], {})
    LocalExecutor(1).run(job, specs, board)
    assert not board.missing
    (job.out / "work/stages").mkdir()
    command = [sys.executable, "-c", ENDS, str(job.out)]
    other = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "[]\n"
    run_job(job, plan, LocalExecutor(1), board)
    assert (job.out / "work/stages").is_dir(), "the other is still at it"
    other.communicate("end\n", timeout=60)
    assert other.returncode == 0
    assert not (job.out / "work/stages").exists(), "although this process lives on"


def refusing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Every lock is refused with this error, as some file systems do."""

    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(claims.fcntl, "lockf", refuse)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing(monkeypatch, number)
    with claimed(tmp_path, 1) as taken:
        assert taken
    (record,) = caplog.records
    said = f"the file system of {tmp_path} keeps no locks: run one job at a time on it, or split it by --shard-range"
    assert (record.levelname, record.getMessage()) == ("WARNING", said)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_a_lock_that_another_process_holds_is_not_acquired(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing(monkeypatch, number)
    with claimed(tmp_path, 1) as taken:
        assert not taken


def test_a_failing_disk_is_not_reported_as_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert claim(tmp_path, 1)
    refusing(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        claim(tmp_path, 2)
    with pytest.raises(OSError, match="Input/output"):
        release(tmp_path, 1)


def test_a_system_without_such_locks_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "fcntl", None)
    with claimed(tmp_path, 1) as taken:
        assert taken
    assert not list(tmp_path.iterdir())


def test_a_lock_is_released_once_and_by_its_holder_only(tmp_path: Path) -> None:
    assert claim(tmp_path, 2) and claim(tmp_path, 4)
    with claimed(tmp_path, 3) as taken:
        assert taken
    for held in (2, 4):
        neighbor = Other(tmp_path, held)
        assert not neighbor.taken, "with a lock none of its neighbors is given back"
        neighbor.kill()
    other = Other(tmp_path, 3)
    assert other.taken
    with claimed(tmp_path, 3) as taken:
        assert not taken
    other.kill()
    release(tmp_path / "elsewhere", 3)  # which was never claimed


def test_who_waits_gets_the_lock_when_the_other_ends(tmp_path: Path) -> None:
    other = Other(tmp_path, 4)
    ending = threading.Timer(0.5, other.kill)
    ending.start()
    assert claim(tmp_path, 4, wait=True)
    ending.join()
    for shared in ([], ["shared"]):
        late = Other(tmp_path, 4, *shared)
        assert not late.taken, "and has it alone"
        late.kill()
