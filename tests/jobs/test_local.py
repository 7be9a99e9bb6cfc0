"""The local executor: the same tree for any number of workers and after any crash."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError, ModelError
from openavs.jobs.executors.local import LocalExecutor
from openavs.jobs.job import ClipFinished, ShardSpec
from openavs.jobs.progress import JobProgress
from openavs.jobs.run import run_job
from tests.jobs.pool import planned, recipe, tree, videos

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos(tmp_path_factory.mktemp("pool") / "videos", 9, white=(5,))


def finish(pool: Path, made: Path, out: Path, engine: LocalExecutor) -> JobProgress:
    job, plan, _ = planned(pool, made, out, shard_size=3)
    board = JobProgress(job, plan, range(plan.shards), {})
    run_job(job, plan, engine, board)
    return board


def test_two_workers_write_what_one_writes(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r")
    one = finish(pool, made, tmp_path / "one", LocalExecutor(1))
    two = finish(pool, made, tmp_path / "two", LocalExecutor(2))
    assert one.counts == two.counts == {"ok": 9}
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    rows = [json.loads(line) for line in (tmp_path / "one/index.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"v{n:02}" for n in range(9)]
    assert json.loads((tmp_path / "one/run.json").read_text())["status"] == "finished"
    assert not (tmp_path / "one/work/stages").exists()


def test_a_clip_that_kills_its_worker_is_taken_out_alone(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", detector={"use": "./stages.py:Fatal"})
    board = finish(pool, made, tmp_path / "out", LocalExecutor(2))
    assert board.counts == {"ok": 8, "failed": 1}
    assert board.reasons == {"worker_crashed": 1}
    assert board.worker_crashes == 3  # once in its shard, twice alone
    rows = [json.loads(line) for line in (tmp_path / "out/index.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows if row["status"] == "failed"] == ["v05"]
    events = [json.loads(line) for log in (tmp_path / "out/log").glob("clips-*") for line in log.open()]
    times = {clip: sum(event["clip"] == clip for event in events) for clip in {event["clip"] for event in events}}
    assert set(times.values()) == {1}, "no neighbor was done twice"


@dataclass
class KillsOnce:
    """A progress observer that kills the worker that reports a clip, once."""

    board: JobProgress
    pids: list[int] = field(default_factory=list)

    def clip(self, done: ClipFinished) -> None:
        self.board.clip(done)
        if not self.pids:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            names = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
            self.pids = [pid for pid, name in names.items() if b"spawn_main" in name]
            os.kill(self.pids[0], signal.SIGKILL)

    def ready(self, models: Mapping[str, Any]) -> None:
        self.board.ready(models)

    def completed(self, shard: int) -> None:
        self.board.completed(shard)

    def busy(self, spec: ShardSpec) -> None:
        self.board.busy(spec)

    def crashed(self, spec: ShardSpec | None, how: str) -> None:
        assert how == "signal 9"
        self.board.crashed(spec, how)

    def stopping(self) -> bool:
        return self.board.stopping()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds the worker in /proc")
def test_a_worker_that_is_killed_is_replaced(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r")
    finish(pool, made, tmp_path / "whole", LocalExecutor(1))
    job, plan, specs = planned(pool, made, tmp_path / "out", shard_size=3)
    watch = KillsOnce(JobProgress(job, plan, range(plan.shards), {}))
    LocalExecutor(1).run(job, specs, watch)
    assert watch.board.worker_crashes == 1
    assert watch.board.counts == {"ok": 9}
    run_job(job, plan, LocalExecutor(1), watch.board)  # the index
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_worker_that_hangs_is_killed_and_its_clip_taken_out(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r")
    stages = tmp_path / "r/stages.py"
    stages.write_text(stages.read_text().replace("os._exit(9)", "time.sleep(1000)"))
    made.write_text(made.read_text().replace("stages.py:Eye", "stages.py:Fatal"))
    board = finish(pool, made, tmp_path / "out", LocalExecutor(1, stall_timeout=1.5))
    assert board.reasons == {"worker_crashed": 1}
    assert board.counts["ok"] == 8


def test_workers_that_cannot_even_start_end_the_job(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r")
    stages = tmp_path / "r/stages.py"
    stages.write_text(stages.read_text() + "\n\nos._exit(3)\n")
    with pytest.raises(ModelError, match=r"crash while they load the models \(exit code 3\)"):
        finish(pool, made, tmp_path / "out", LocalExecutor(1))


def test_a_fault_of_the_recipe_is_raised_as_it_is(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", captioner={"use": "./nothing.py:Ear"})
    with pytest.raises(InputError, match="nothing"):
        finish(pool, made, tmp_path / "out", LocalExecutor(2))
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "stopped"
