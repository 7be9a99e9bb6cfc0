"""Progress messages of a job, and its summary."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from openavs.cli.jobs import failed_clips, print_stages, result_line
from openavs.cli.output import job_progress, reasons, state
from openavs.jobs.checkpoint import Entry, StageTimes, complete
from openavs.jobs.job import ClipFinished, Job
from openavs.jobs.manifest import JobRequest
from openavs.jobs.output_dir import open_folder
from openavs.jobs.progress import JobProgress
from openavs.jobs.sample import Sample

WISH = JobRequest("folder", tuple(Sample(f"c{n}", f"c{n}.mp4") for n in range(6)), {"name": "r"}, shard_size=3)


@pytest.fixture
def board(tmp_path: Path) -> JobProgress:
    """Six clips in two shards, nothing done."""
    plan = open_folder(tmp_path / "out", WISH)
    return JobProgress(Job(tmp_path / "out", plan.key, tmp_path, {"name": "r"}), plan, range(plan.shards), {})


def done(shard: int, clip: str, reason: str | None = None, status: str = "ok") -> ClipFinished:
    return ClipFinished(shard, clip, "failed" if reason else status, reason, 0.5, {})


def finish(board: JobProgress, shard: int, *fates: dict[str, Any]) -> None:
    """Commits a shard, as a worker does, and reports it."""
    rows: list[Entry] = [
        ({"id": f"c{3 * shard + n}", "detail": f"sentence {n}", "rejected": {}, **f}, {}) for n, f in enumerate(fates)
    ]
    complete(board.job.out, shard, board.manifest.key, rows)
    board.completed(shard)


OK: dict[str, Any] = {"status": "ok", "reason": None}
MISSING: dict[str, Any] = {"status": "failed", "reason": "missing"}
MUTE: dict[str, Any] = {"status": "failed", "reason": "no_sound"}


def test_before_the_first_clip_the_models_are_loading(board: JobProgress) -> None:
    assert state(board) == "loading the models"
    assert result_line(board) == f"0 of 6 clips labeled, 6 not done yet\n-> {board.job.out}"
    board.ready({})
    assert state(board) == "running the first clips"


def test_a_running_job_says_its_speed_what_is_left_and_what_failed(board: JobProgress) -> None:
    board.clip(done(0, "c0"))
    said = state(board)
    assert "clips/s, 0:00:" in said and said.endswith(" left")
    board.clip(done(0, "c1", "missing"))
    board.clip(done(0, "c2", "missing"))
    board.clip(done(1, "c3", "no_sound"))
    assert state(board).endswith(" left, 3 failed (missing 2, no_sound 1)")
    assert (board.total, board.left) == (6, 2)


def test_the_end_says_what_became_of_the_clips(board: JobProgress) -> None:
    finish(board, 0, OK, MISSING, MISSING)
    empty = {"status": "filtered", "reason": "drop_empty", "rejected": {"label_filter.drop_empty": 1}}
    finish(board, 1, {**OK, "rejected": {"not found": 2}}, MUTE, empty)
    assert result_line(board).splitlines() == [
        "2 of 6 clips labeled, 1 filtered (label_filter.drop_empty 1), 3 failed",
        "rejected in frames: not found 2",
        f"-> {board.job.out}",
    ]
    assert reasons(board) == "missing 2, no_sound 1"


def test_the_first_failed_clips_are_named_with_their_sentences(board: JobProgress) -> None:
    finish(board, 0, OK, OK, OK)
    assert failed_clips(board, 9) == []
    finish(board, 1, MUTE, OK, MISSING)
    assert failed_clips(board, 9) == [("c3", "no_sound", "sentence 0"), ("c5", "missing", "sentence 2")]
    assert failed_clips(board, 1) == [("c3", "no_sound", "sentence 0")]


def test_off_a_terminal_there_is_a_line_now_and_then(board: JobProgress, capsys: pytest.CaptureFixture[str]) -> None:
    with job_progress(board, quiet=False):
        for number in range(3):
            board.clip(done(0, f"c{number}"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("openavs: 1 of 6 clips, ")


def test_a_quiet_job_says_nothing(board: JobProgress, capsys: pytest.CaptureFixture[str]) -> None:
    with job_progress(board, quiet=True):
        board.clip(done(1, "c3"))
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar(board: JobProgress, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    with job_progress(board, quiet=False):
        board.clip(done(0, "c0", "missing"))
        board.clip(done(0, "c1"))
    shown = capsys.readouterr().err
    assert "2/6" in shown and "1 failed (missing 1)" in shown


def test_stage_table_has_the_time_of_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    print_stages(StageTimes(clips=4, seconds=10.0, stages={"caption": 6.0, "detect": 2.0}))
    rows = [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if len(row) == 4][-3:] == [
        ["caption", "6.0", "1.500", "60%"], ["detect", "2.0", "0.500", "20%"], ["read and write", "2.0", "0.500", "20%"]
    ]  # fmt: skip
