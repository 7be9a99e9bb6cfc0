"""The Ray engine on a real cluster of this machine: killed workers and nodes, poison, stops, no room.

`make test-ray` installs Ray and runs these.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError, ModelError
from openavs.jobs.executors.local import LocalExecutor
from openavs.jobs.executors.ray import RayExecutor, connected
from openavs.jobs.job import ClipFinished, Executor
from openavs.jobs.job_store import scratch_of
from openavs.jobs.progress import JobProgress
from openavs.jobs.run import run_job
from openavs.results.serialization import read_result
from tests.jobs.pool import label, planned, recipe, tree, videos
from tests.jobs.stores import fetch, s3_server, upload

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray: Any = pytest.importorskip("ray", reason="Ray is not installed; make test-ray installs it")
pytestmark = [pytest.mark.slow, pytest.mark.faults]

CLUSTER = {"include_dashboard": False, "object_store_memory": 100_000_000, "log_to_driver": False}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Four CPUs and two GPUs as far as Ray knows."""
    ray.init("local", num_cpus=4, num_gpus=2, **CLUSTER)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos(tmp_path_factory.mktemp("pool") / "videos", 12, white=(5,))


def job_of(pool: Path, made: Path, out: Path, kind: type[JobProgress] = JobProgress) -> JobProgress:
    job, plan, _ = planned(pool, made, out, shard_size=3)
    return kind(job, plan, range(plan.shards), {})


def finish(board: JobProgress, engine: Executor) -> JobProgress:
    run_job(board.job, board.manifest, engine, board)
    return board


class KillsOnce(JobProgress):
    """Kills the first worker that reports, when a clip of the job's second half is done."""

    killed: int | None = None

    def clip(self, done: ClipFinished) -> None:
        super().clip(done)
        if self.killed is None and self.worked >= 6:
            logs = sorted((self.job.out / "log").glob("clips-*.jsonl"))
            self.killed = int(logs[0].stem.rpartition("-")[2])
            os.kill(self.killed, signal.SIGKILL)


class StopsSoon(JobProgress):
    """Requests a stop after two clips."""

    def clip(self, done: ClipFinished) -> None:
        super().clip(done)
        self.stop = self.stop or self.worked >= 2


# ------------------------------------------------------------------------------------------------------ crashes


@pytest.mark.usefixtures("cluster")
def test_a_job_whose_worker_is_killed_half_way_writes_what_the_local_engine_writes(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", detector={"use": "./stages.py:Slow"})
    finish(job_of(pool, made, tmp_path / "local"), LocalExecutor(1))
    board = finish(job_of(pool, made, tmp_path / "ray", KillsOnce), RayExecutor(2))
    assert isinstance(board, KillsOnce)
    assert board.killed is not None
    assert board.worker_crashes == 1
    assert board.counts == {"ok": 12}
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


@pytest.mark.usefixtures("cluster")
def test_a_clip_that_kills_its_worker_is_taken_out_alone(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", detector={"use": "./stages.py:Fatal"})
    finish(job_of(pool, made, tmp_path / "local"), LocalExecutor(1))
    board = finish(job_of(pool, made, tmp_path / "ray"), RayExecutor(2))
    assert board.reasons == {"worker_crashed": 1}
    assert board.counts == {"ok": 11, "failed": 1}
    assert board.worker_crashes <= 4  # once in its shard, perhaps for another clip of the batch, twice alone
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_hangs_is_killed_and_its_clip_taken_out(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", detector={"use": "./stages.py:Fatal"})
    stages = tmp_path / "r/stages.py"
    stages.write_text(stages.read_text().replace("os._exit(9)", "time.sleep(1000)"))
    board = finish(job_of(pool, made, tmp_path / "out"), RayExecutor(2, stall_timeout=3))
    assert board.reasons == {"worker_crashed": 1}
    assert board.counts["ok"] == 11


@pytest.mark.usefixtures("cluster")
def test_each_worker_sees_a_gpu_of_its_own(pool: Path, tmp_path: Path) -> None:
    """A captioner whose caption is the number of the GPU that it sees."""
    made = recipe(tmp_path / "r")
    stages = tmp_path / "r/stages.py"
    stages.write_text(stages.read_text().replace('Caption("dog"', 'Caption(os.environ["CUDA_VISIBLE_DEVICES"]'))
    finish(job_of(pool, made, tmp_path / "out"), RayExecutor(2))
    heard = {frame.captions[0].text for n in range(12) for frame in read_result(tmp_path / "out", f"v{n:02}").frames}
    assert heard
    assert heard <= {"0", "1"}


# ------------------------------------------------------------------------------------------------ stops and faults


@pytest.mark.usefixtures("cluster")
def test_a_job_that_was_stopped_goes_on_elsewhere(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", detector={"use": "./stages.py:Slow"})
    board = finish(job_of(pool, made, tmp_path / "out", StopsSoon), RayExecutor(2))
    assert 2 <= board.status["ok"] < 12
    again = finish(job_of(pool, made, tmp_path / "out"), LocalExecutor(1))
    assert again.worked == 12 - board.status["ok"]
    finish(job_of(pool, made, tmp_path / "whole"), LocalExecutor(1))
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.usefixtures("cluster")
def test_a_model_that_cannot_be_loaded_ends_the_job_with_its_sentence(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", segmenter={"use": "sam", "model": str(tmp_path / "nothing")})
    with pytest.raises(ModelError, match="does not exist"):
        finish(job_of(pool, made, tmp_path / "out"), RayExecutor(2))


@pytest.mark.usefixtures("cluster")
def test_workers_that_cannot_even_start_end_the_job(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r")
    stages = tmp_path / "r/stages.py"
    board = job_of(pool, made, tmp_path / "out")
    stages.write_text(stages.read_text() + "\n\nos._exit(3)\n")
    with pytest.raises(ModelError, match="crash while they load the models"):
        finish(board, RayExecutor(1))


@pytest.mark.usefixtures("cluster")
def test_workers_that_need_every_cpu_are_refused_before_a_hang(pool: Path, tmp_path: Path) -> None:
    board = job_of(pool, recipe(tmp_path / "r"), tmp_path / "out")
    started = time.monotonic()
    with pytest.raises(InputError, match=r"4 workers of 1 CPUs and 0\.5 GPUs each do not fit .* use --workers 3"):
        finish(board, RayExecutor(4))
    assert time.monotonic() - started < 5
    assert board.worked == 0


# From here on without the cluster of the tests above.


def test_a_node_that_is_lost_is_survived(pool: Path, tmp_path: Path) -> None:
    """Two nodes on this machine; the one that has all the workers goes, another comes."""
    from ray.cluster_utils import Cluster

    class LosesANode(JobProgress):
        def clip(self, done: ClipFinished) -> None:
            super().clip(done)
            if self.worked == 2:
                nodes.remove_node(second, allow_graceful=False)
                nodes.add_node(num_cpus=2)

    made = recipe(tmp_path / "r", detector={"use": "./stages.py:Slow"})
    finish(job_of(pool, made, tmp_path / "local"), LocalExecutor(1))
    ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = nodes.add_node(num_cpus=2)
        job, plan, _ = planned(pool, made, tmp_path / "ray", shard_size=3)
        board = LosesANode(job, plan, range(plan.shards), {})
        finish(board, RayExecutor(2, address=nodes.address))
    finally:
        nodes.shutdown()
    assert board.worker_crashes >= 1
    assert board.counts == {"ok": 12}
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def test_nodes_write_to_an_object_store_and_one_that_is_lost_is_survived(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes on this machine, with clips and results on S3."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed; make test-ray installs it")
    pytest.importorskip("moto", reason="moto is not installed; make test-ray installs it")
    from ray.cluster_utils import Cluster

    class LosesANode(JobProgress):
        def clip(self, done: ClipFinished) -> None:
            super().clip(done)
            if self.worked == 2:
                nodes.remove_node(second, allow_graceful=False)
                nodes.add_node(num_cpus=2)

    made = recipe(tmp_path / "r", detector={"use": "./stages.py:Slow"})
    finish(job_of(pool, made, tmp_path / "local"), LocalExecutor(1))
    ray.shutdown()
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("nodes")
        clips, out = upload(pool, "s3://nodes/clips"), "s3://nodes/labels"
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            second = nodes.add_node(num_cpus=2)
            with scratch_of(out) as store:
                job, plan, _ = planned(clips, made, store.out, shard_size=3)
                job = replace(job, store=store.url, owner=store.owner)
                board = LosesANode(job, plan, range(plan.shards), {})
                finish(board, RayExecutor(2, address=nodes.address))
        finally:
            nodes.shutdown()
        assert board.worker_crashes >= 1
        assert board.counts == {"ok": 12}
        assert tree(fetch(out, tmp_path / "got")) == tree(tmp_path / "local")


def test_an_address_without_a_cluster_is_refused(pool: Path, tmp_path: Path) -> None:
    ray.shutdown()
    board = job_of(pool, recipe(tmp_path / "r"), tmp_path / "out")
    with pytest.raises(InputError, match=r"no Ray cluster can be reached at 127\.0\.0\.1:1"):
        finish(board, RayExecutor(1, address="127.0.0.1:1"))


def test_a_cluster_that_does_not_come_up_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.shutdown()
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))  # where no folder can be made
    with pytest.raises(InputError, match=r"could not start a cluster .*Not a directory"), connected("local"):
        pass


# ------------------------------------------------------------------------------------------------ the command line


def processes_of(session: str) -> list[str]:
    """Processes of Ray that this job's command has left behind."""
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if session in line]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder of a short name: Ray's sockets lie in it, and the name of a socket has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_the_command_stops_at_ctrl_c_and_goes_on(
    pool: Path, tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster of its own, of which nothing is left; nothing is reported to anybody."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    made = recipe(tmp_path / "r", detector={"use": "./stages.py:Slow"})
    words = (pool, "--pipeline", made, "--out", tmp_path / "out", "--shard-size", "3", "--executor", "ray")
    words += ("--workers", "1", "--no-cache")
    first = label(*words, start_new_session=True)
    while not list((tmp_path / "out" / "log").glob("clips-*")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: to every process of the command
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1, err
    assert "stopping after the clips under way" in err
    assert "run the same command again to resume" in err
    assert not (tmp_path / "out/index.jsonl").exists() or json.loads((tmp_path / "out/run.json").read_text())["left"]

    second = label(*words, "--json")
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert json.loads(out)["ok"] == 12
    assert "usage" not in err.lower()
    assert processes_of(str(short)) == []
    finish(job_of(pool, made, tmp_path / "local"), LocalExecutor(1))
    assert tree(tmp_path / "out") == tree(tmp_path / "local")
