"""Faults in a shard: the failed clip, its row and log record, and faults that end the job."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError, InvalidOutputError, ModelError
from openavs.jobs.checkpoint import ShardJournal, completion_path, journal_path
from openavs.jobs.job import ClipFinished, ShardSpec
from openavs.jobs.manifest import shard_samples
from openavs.jobs.shard import run_shard
from openavs.structures.types import Clip, ClipResult
from tests.jobs.pool import planned, recipe, videos
from tests.jobs.test_shard import chain


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos(tmp_path_factory.mktemp("pool") / "videos", 3)


@pytest.fixture
def spec(pool: Path, tmp_path: Path) -> ShardSpec:
    return planned(pool, recipe(tmp_path / "r"), tmp_path / "out")[2][0]


def failing(spec: ShardSpec, problem: Exception, at: str = "v01") -> Callable[[Clip], ClipResult]:
    """The pipeline, which raises this at one clip."""
    good = chain(spec)

    def segment(clip: Clip) -> ClipResult:
        if clip.id == at:
            raise problem
        return good(clip)

    return segment


def row_of(spec: ShardSpec, problem: Exception) -> dict[str, Any]:
    """The row of the clip at which this is raised, between two that are done."""
    mark = run_shard(spec, failing(spec, problem))
    assert mark is not None
    assert [row["status"] for row in mark["rows"]] == ["ok", "failed", "ok"]
    row: dict[str, Any] = mark["rows"][1]
    return row


NO_MEMORY = (
    "not even one frame of this clip fits into memory beside the models; use a smaller model, dtype=bfloat16 or "
    "device=cpu"
)


@pytest.mark.parametrize(
    ("problem", "reason", "detail"),
    [
        (InvalidOutputError("the captioner answered NaN"), "invalid_output", "the captioner answered NaN"),
        (InputError("it has no frames"), "failed", "it has no frames"),
        (ZeroDivisionError("by zero"), "unexpected ZeroDivisionError", "ZeroDivisionError: by zero"),
        (FileNotFoundError(2, "gone"), "unexpected FileNotFoundError", "FileNotFoundError: [Errno 2] gone"),
        (MemoryError(), "out_of_memory", NO_MEMORY),
    ],
)  # fmt: skip
def test_a_clips_own_fault_is_its_row(spec: ShardSpec, problem: Exception, reason: str, detail: str) -> None:
    row = row_of(spec, problem)
    assert (row["reason"], row["detail"]) == (reason, detail)


def test_sentences_name_no_folder_of_this_machine(spec: ShardSpec) -> None:
    root = spec.job.root
    assert row_of(spec, InputError(f"{root}/v01.mp4 has no frames"))["detail"] == "v01.mp4 has no frames"


def test_unexpected_errors_do_not_either(spec: ShardSpec) -> None:
    row = row_of(spec, KeyError(f"{spec.job.root}/v01.mp4"))
    assert row["detail"] == "KeyError: 'v01.mp4'"


def test_unexpected_errors_are_logged_with_a_traceback(spec: ShardSpec, caplog: pytest.LogCaptureFixture) -> None:
    row_of(spec, ZeroDivisionError("by zero"))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "clip v01 failed"
    assert record.exc_info is not None and isinstance(record.exc_info[1], ZeroDivisionError)


@pytest.mark.parametrize(
    "problem", [ModelError("the server refuses"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]
)
def test_a_fault_of_the_job_ends_it_and_what_is_done_stays(spec: ShardSpec, problem: Exception) -> None:
    with pytest.raises(type(problem)) as raised:
        run_shard(spec, failing(spec, problem))
    assert raised.value is problem
    assert not completion_path(spec.job.out, 0).exists()
    journal = ShardJournal.read(journal_path(spec.job.out, 0))
    assert (set(journal.finished), "v01" in journal.begun) == ({"v00"}, True)
    mark = run_shard(spec, chain(spec))
    assert mark is not None and mark["counts"] == {"ok": 3}


def test_every_clip_is_reported(spec: ShardSpec) -> None:
    told: list[ClipFinished] = []
    run_shard(spec, failing(spec, InvalidOutputError("NaN")), on_clip=told.append)
    assert [(done.shard, done.clip, done.status, done.reason) for done in told] == [
        (0, "v00", "ok", None), (0, "v01", "failed", "invalid_output"), (0, "v02", "ok", None)
    ]  # fmt: skip
    assert set(told[0].timings) >= {"caption", "detect", "segment"} and told[1].timings == {}
    assert all(0 < done.seconds < 60 and done.seconds == round(done.seconds, 4) for done in told)
    assert len({done.seconds for done in told}) > 1
    (log,) = (spec.job.out / "log").glob("clips-*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["clip"], line["status"], line["reason"]) for line in lines] == [
        ("v00", "ok", None), ("v01", "failed", "invalid_output"), ("v02", "ok", None)
    ]  # fmt: skip
    assert [line["seconds"] for line in lines] == [done.seconds for done in told]
    assert all("time" in line and "cached" not in line for line in lines)


def test_seconds_of_clips_are_kept_beside_their_rows(spec: ShardSpec) -> None:
    told: list[ClipFinished] = []
    mark = run_shard(spec, chain(spec), on_clip=told.append)
    assert mark is not None and all("seconds" not in row for row in mark["rows"])
    kept = json.loads((spec.job.out / "log/timings/000000.json").read_bytes())
    assert kept == {done.clip: {"seconds": done.seconds, "stages": done.timings} for done in told}


def test_a_plan_that_was_cut_short_is_named(spec: ShardSpec) -> None:
    plan = spec.job.out / "manifest.jsonl"
    assert [item.id for item in shard_samples(spec)] == ["v00", "v01", "v02"]
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"manifest\.jsonl was cut short while the job ran; run the same command"):
        run_shard(spec, chain(spec))
