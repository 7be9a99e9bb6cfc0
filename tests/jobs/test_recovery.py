"""Finding the clip that crashed a worker, without any process."""

from __future__ import annotations

from pathlib import Path

import pytest

from openavs.errors import ModelError
from openavs.jobs.checkpoint import ShardJournal, journal_path
from openavs.jobs.executors.base import MAX_SOLO_ATTEMPTS, Recovery
from tests.jobs.pool import planned, recipe

pytestmark = pytest.mark.faults


@pytest.fixture
def job(tmp_path: Path):  # type: ignore[no-untyped-def]
    (tmp_path / "v").mkdir()
    for name in "abcd":
        (tmp_path / f"v/{name}.mp4").write_bytes(b"x")
    made, _, specs = planned(tmp_path / "v", recipe(tmp_path / "r"), tmp_path / "out")
    return made, specs[0]


def test_those_that_were_under_way_are_tried_alone_and_the_killer_is_put_on_record(job) -> None:  # type: ignore[no-untyped-def]
    made, spec = job
    recovery = Recovery(made)
    journal = ShardJournal.read(journal_path(made.out, 0))
    journal.start()
    journal.begin("a")
    journal.finish({"id": "a", "status": "ok", "rejected": {}}, {})
    journal.begin("b")
    journal.begin("c")  # opened ahead
    step = recovery.after(spec, crashed=True)
    tried = []
    while step is not None and step.only:
        tried.append(step.only)
        step = recovery.after(step, crashed=step.only == ("c",))
    assert tried == [("b",), *[("c",)] * MAX_SOLO_ATTEMPTS]
    assert step == spec, "then the shard goes on"
    row, files = ShardJournal.read(journal_path(made.out, 0)).finished["c"]
    assert (row["status"], row["reason"], files) == ("failed", "worker_crashed", {})
    assert row["detail"] == "the worker crashed 2 times while it ran nothing but this clip"
    assert recovery.after(spec, crashed=False) is None


def test_every_shard_has_suspects_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    for name in "abcd":
        (tmp_path / f"v/{name}.mp4").write_bytes(b"x")
    made, _, specs = planned(tmp_path / "v", recipe(tmp_path / "r"), tmp_path / "out", shard_size=2)
    for shard, clips in enumerate(("ab", "cd")):
        journal = ShardJournal(journal_path(made.out, shard))
        journal.start()
        for clip in clips:
            journal.begin(clip)
    recovery = Recovery(made)
    steps = [recovery.after(spec, crashed=True) for spec in specs]
    for expected in ("ac", "bd"):
        assert [step and step.only for step in steps] == [(clip,) for clip in expected]
        steps = [step and recovery.after(step, crashed=False) for step in steps]
    assert steps == specs


def test_what_an_earlier_run_had_under_way_is_not_suspected(job) -> None:  # type: ignore[no-untyped-def]
    made, spec = job
    journal = ShardJournal.read(journal_path(made.out, 0))
    journal.start()
    journal.begin("a")
    journal.start()
    journal.begin("d")
    step = Recovery(made).after(spec, crashed=True)
    assert step is not None
    assert step.only == ("d",)


def test_workers_that_die_with_nothing_under_way_end_the_job(job) -> None:  # type: ignore[no-untyped-def]
    made, spec = job
    recovery = Recovery(made)
    assert recovery.after(spec, crashed=True) == spec
    assert recovery.after(spec, crashed=True) == spec
    with pytest.raises(ModelError, match=r"crashed 3 times at shard 0 with no clip under way; see .*out/log, and use"):
        recovery.after(spec, crashed=True)
