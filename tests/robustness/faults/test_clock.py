"""Clocks jump, and files get times of another century: nothing that is kept depends on either."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.robustness.faults.conftest import Whole, label, start, wait_for


@pytest.mark.parametrize("jump", [-86400, 3_000_000_000])
def test_a_clock_that_jumps_in_the_middle_of_a_job(
    jump: int, pool: Path, recipe: Path, whole: Whole, tmp_path: Path
) -> None:
    done = label(pool, recipe, tmp_path / "out", FAULT=f"clock:{jump}")
    assert done.code == 0, done.err
    whole(tmp_path / "out")


@pytest.mark.parametrize("year", [1971, 2100])
def test_a_half_done_job_whose_files_are_of_another_time(
    year: int, pool: Path, recipe: Path, whole: Whole, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("label", pool, "--pipeline", recipe, "--out", out, "--workers", "1", "--shard-size", "3", "--no-cache")
    job = start(*words, PACE="0.3")
    wait_for(lambda: len(list(out.glob("clips/*/result.json"))) >= 4)
    job.kill()
    job.communicate()
    then = (year - 1970) * 365.25 * 86400
    for path in out.rglob("*"):
        os.utime(path, (then, then))
    done = label(pool, recipe, out)
    assert done.code == 0, done.err
    assert done.json()["worked"] < 6, "what was finished is believed"
    whole(out)
