"""The simulation of label jobs: sums that can be checked by hand, and what each assumption costs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def scale(load_script: Callable[[str], Any]) -> Any:
    return load_script("scale")


@pytest.fixture
def simulate(scale: Any) -> Callable[..., Any]:
    """Clips of 2 s, 10 s to a worker's first, 1 s afterwards for 1000 rows, shards of 10."""

    def run(clips: int, gpus: int, seed: int = 0, **assumed: Any) -> Any:
        times = scale.Times((2.0,), 10.0, 0.0)
        return scale.simulate(
            times, scale.Assumptions(**{"shard_size": 10, "row": 0.001, **assumed}), clips, gpus, seed
        )

    return run


def test_one_gpu_takes_the_sum_of_its_clips(simulate: Callable[..., Any]) -> None:
    job = simulate(1000, 1)
    assert job.seconds == pytest.approx(10 + 2000 + 1)
    assert job.clips_per_second == pytest.approx(1000 / 2011)
    assert job.idle_share == pytest.approx(11 / 2011)
    assert job.lost_share == 0
    assert job.cost_per_million_clips == pytest.approx(2011 / 3600 * 2.0 * 1000)


def test_gpus_share_shards_and_the_last_shards_leave_some_idle(simulate: Callable[..., Any]) -> None:
    assert simulate(1000, 8).seconds == pytest.approx(10 + 13 * 20 + 1), "100 shards on 8 GPUs: 13 rounds"
    assert simulate(15, 8).seconds == pytest.approx(10 + 20 + 0.015), "two shards for eight GPUs"
    assert simulate(1000, 8, price=4.0).cost_per_million_clips == 2 * simulate(1000, 8).cost_per_million_clips


def test_a_clip_that_crashes_its_worker_costs_three_starts(simulate: Callable[..., Any]) -> None:
    job = simulate(10, 1, poison=1.0)
    assert job.seconds == pytest.approx(10 + 20 + 10 * (3 * 10 + 5 * 2) + 0.01)
    assert job.lost_share == pytest.approx(100 / 120)


def test_preempted_work_is_continued_and_never_begun_again(simulate: Callable[..., Any]) -> None:
    calm, rough = simulate(20_000, 16), simulate(20_000, 16, preemptions=2.0)
    assert rough.seconds > calm.seconds
    assert 0 < rough.lost_share < 0.02
    busy = [(1 - job.idle_share) * job.seconds * 16 * (1 - job.lost_share) for job in (calm, rough)]
    assert busy[1] == pytest.approx(busy[0], rel=1e-3), "the clips take what they take"


def test_slow_workers_and_a_slow_store_are_waited_for(simulate: Callable[..., Any]) -> None:
    assert simulate(1000, 8, slow=1.0, slowness=3.0).seconds == pytest.approx(10 + 13 * 60 + 1)
    near, far = simulate(1000, 1, latency=0.01), simulate(1000, 1, latency=0.01, throughput=5e5)
    assert near.seconds == pytest.approx(10 + 2000 + 100 * 0.01 * (10 + 10 / 16) + 1), "hidden behind the models"
    assert far.seconds > 4000, "2 MB at 0.5 MB/s take 4 s a clip"


def test_a_seed_gives_one_outcome(simulate: Callable[..., Any]) -> None:
    assert simulate(5000, 4, 1, preemptions=3.0) == simulate(5000, 4, 1, preemptions=3.0)
    assert simulate(5000, 4, 1, preemptions=3.0) != simulate(5000, 4, 2, preemptions=3.0)


def job_folder(out: Path, ends: list[float], updated: float) -> Path:
    """A result folder of one worker, whose clips ended at these seconds."""
    (out / "log").mkdir(parents=True)
    moments = [f"2026-12-01T10:00:{second:06.3f}+00:00" for second in (0.0, *ends, updated)]
    (out / "log/clips-host-1.jsonl").write_text("".join(json.dumps({"time": when}) + "\n" for when in moments[1:-1]))
    run = {"started": moments[0], "updated": moments[-1], "clips": len(ends), "shards": {"planned": 1}}
    (out / "run.json").write_text(json.dumps(run))
    return out


def test_times_are_read_from_the_logs_and_predict_their_own_job(scale: Any, tmp_path: Path) -> None:
    out = job_folder(tmp_path / "out", [7.0, 9.0, 11.0, 13.0], 13.4)
    times = scale.read_times(out)
    assert (times.periods, times.start, times.end) == ((2.0, 2.0, 2.0), 5.0, pytest.approx(0.4))
    assert scale.check(times, out, 0) == {"clips": 4, "workers": 1, "predicted": 13.4, "real": 13.4, "ratio": 1.0}


def test_the_script_prints_jobs_and_assumptions(tmp_path: Path) -> None:
    out = job_folder(tmp_path / "out", [7.0, 9.0, 11.0, 13.0], 13.4)
    words = ["--times", out, "--save", tmp_path / "times.json", "--clips", "10", "--gpus", "1", "2", "--json"]
    command = [sys.executable, ROOT / "eval/bench/scale.py", *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert [(job["clips"], job["gpus"]) for job in answer["jobs"]] == [(10, 1), (10, 2)]
    assert answer["assumed"]["price"] == 2.0
    command[command.index(out)] = tmp_path / "times.json"
    again = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert json.loads(again.stdout) == answer
