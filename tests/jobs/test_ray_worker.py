"""The object of a Ray actor, called directly without Ray, and the check that workers fit a cluster."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import openavs
from openavs.errors import InputError, ModelError
from openavs.jobs.executors.ray import Event, RayWorker, WorkerResources, fitting_workers
from openavs.jobs.job import ShardSpec
from tests.jobs.pool import planned, recipe, tree, videos

LEVEL = 30


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos(tmp_path_factory.mktemp("pool") / "videos", 3, seconds=1)


@pytest.fixture
def spec(pool: Path, tmp_path: Path) -> ShardSpec:
    return planned(pool, recipe(tmp_path / "r"), tmp_path / "out")[2][0]


def told(worker: RayWorker, until: str) -> list[Event]:
    """All events up to one of this kind."""
    events: list[Event] = []
    while not events or events[-1][0] != until:
        news = worker.events(False)
        assert news, f"{events} and no {until}"
        events += news
    return events


def test_events_are_reported_in_order(spec: ShardSpec) -> None:
    worker = RayWorker(spec.job, openavs.__version__, LEVEL)
    worker.load()
    worker.work(spec)
    events = told(worker, "done")
    assert [kind for kind, _ in events] == ["placed", "ready", "clip", "clip", "clip", "done"]
    assert [value.clip for kind, value in events if kind == "clip"] == ["v00", "v01", "v02"]
    assert worker.events(False) == []
    assert "work/shards/000000.json" in tree(spec.job.out)


def test_listening_goes_on_beside_the_work_and_can_stop_it(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", detector={"use": "./stages.py:Slow"})
    spec = planned(pool, made, tmp_path / "out")[2][0]
    worker = RayWorker(spec.job, openavs.__version__, LEVEL)
    worker.load()
    told(worker, "ready")
    work = threading.Thread(target=worker.work, args=(spec,))
    work.start()
    events: list[Event] = []
    while not events:
        events = worker.events(True)
    work.join()
    events += worker.events(True)
    kinds = [kind for kind, _ in events]
    assert kinds[-1] == "done"
    assert kinds.count("clip") < 3
    assert "work/shards/000000.json" not in tree(spec.job.out)


@pytest.mark.parametrize(
    ("version", "changes", "sentence"),
    [
        ("0.0.1", {}, "and the driver 0.0.1; install the same"),
        (openavs.__version__, {"key": "another"}, "does not have this job"),
        (openavs.__version__, {"out": Path("/nowhere")}, "on a disk that all nodes have"),
    ],
)
def test_a_node_that_is_not_like_the_driver_is_refused(
    spec: ShardSpec, version: str, changes: dict, sentence: str
) -> None:
    worker = RayWorker(replace(spec.job, **changes), version, LEVEL)
    worker.load()
    _, (kind, problem) = worker.events(False)
    assert kind == "fault"
    assert isinstance(problem, InputError)
    assert sentence in str(problem)


def test_a_model_that_cannot_be_loaded_is_reported(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", segmenter={"use": "sam", "model": str(tmp_path / "nothing")})
    job, _, _ = planned(pool, made, tmp_path / "out")
    worker = RayWorker(job, openavs.__version__, LEVEL)
    worker.load()
    _, problem = told(worker, "fault")[-1]
    assert isinstance(problem, ModelError)


# --------------------------------------------------------------------------------------------- room on the cluster

CPU, GPU = WorkerResources(2), WorkerResources(2, 1)
SMALL = {"CPU": 2.0}
BOX = {"CPU": 32.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "share", "workers"),
    [
        ([{"CPU": 8.0}], WorkerResources(1), 7),
        ([{"CPU": 8.0}], CPU, 3),
        ([BOX], GPU, 8),
        ([BOX, BOX, SMALL], GPU, 16),
        ([{"CPU": 4.0, "GPU": 8.0}], GPU, 1),
        ([{"CPU": 8.0, "GPU": 1.0}], WorkerResources(1, 0.5), 2),
        ([{"CPU": 3.0}, {"CPU": 3.0}], CPU, 2),
    ],
)
def test_by_default_there_are_as_many_workers_as_fit(nodes: list, share: WorkerResources, workers: int) -> None:
    free = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    assert fitting_workers(nodes, free, share, None) == workers
    assert fitting_workers(nodes, free, share, 1) == 1
    with pytest.raises(InputError, match=f"do not fit .* use --workers {workers}$"):
        fitting_workers(nodes, free, share, workers + 1)


def test_workers_that_need_every_cpu_are_refused() -> None:
    with pytest.raises(InputError, match="2 workers of 1 CPUs each do not fit the Ray cluster, of whose 2 CPUs 2 are"):
        fitting_workers([SMALL], SMALL, WorkerResources(1), 2)


def test_what_others_have_taken_is_not_there() -> None:
    with pytest.raises(InputError, match="8 CPUs 2 are free and one has to stay so; use --workers 2"):
        fitting_workers([{"CPU": 8.0}], {"CPU": 2.0}, WorkerResources(1), 4)


@pytest.mark.parametrize("wanted", [None, 1])
def test_a_cluster_without_any_room_says_so(wanted: int | None) -> None:
    with pytest.raises(InputError, match="use --executor local, or a larger cluster"):
        fitting_workers([{"CPU": 1.0}], {"CPU": 1.0}, WorkerResources(1), wanted)


def test_polling_for_events_returns_soon(spec: ShardSpec) -> None:
    worker = RayWorker(spec.job, openavs.__version__, LEVEL)
    worker.events(False)
    started = time.monotonic()
    assert worker.events(False) == []
    assert time.monotonic() - started < 2
