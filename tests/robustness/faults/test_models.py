"""Models that answer nothing or NaN, and memory that runs out: a clip's fault is the clip's, and is on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.jobs.pool import tree
from tests.robustness.faults.conftest import label
from tests.robustness.faults.injection import faulty_recipe


def rows(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "index.jsonl").open()]


def test_a_batch_that_does_not_fit_into_memory_is_done_in_halves(pool: Path, tmp_path: Path) -> None:
    """Four windows a clip: with room for all of them, for three (4 = 2 + 2), for one, and for none."""
    made = faulty_recipe(tmp_path / "r", ear="NarrowEar")
    results = {}
    for room in ("4", "3", "1"):
        done = label(pool, made, tmp_path / room, ROOM=room)
        assert done.code == 0, done.err
        results[room] = tree(tmp_path / room)
    assert results["4"] == results["3"] == results["1"]

    none = label(pool, made, tmp_path / "none", ROOM="0")
    assert none.code == 1
    assert [row["reason"] for row in rows(tmp_path / "none")] == ["out_of_memory"] * 6
    assert none.json()["failed"] == 6


@pytest.mark.parametrize(("answer", "code", "status"), [("nan", 1, "failed"), ("nothing", 0, "ok")])
def test_a_captioner_that_answers_nan_or_nothing(
    answer: str, code: int, status: str, pool: Path, tmp_path: Path
) -> None:
    made = faulty_recipe(tmp_path / "r", ear="BadEar")
    done = label(pool, made, tmp_path / "out", ANSWER=answer)
    assert done.code == code, done.err
    for row in rows(tmp_path / "out"):
        assert (row["status"], row["segments"]) == (status, 0)
        assert row["reason"] == ("invalid_output" if answer == "nan" else None)
    healthy = label(pool, made, tmp_path / "out", ANSWER="")
    assert healthy.code == code, "what is done is done, until it is asked for again"
