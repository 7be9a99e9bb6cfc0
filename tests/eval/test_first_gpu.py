"""The script for the first minutes on a GPU runs on a CPU with small networks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "first_gpu.py"
SMALL = ("--size", "tiny", "--device", "cpu")


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("first_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["first_gpu"] = module  # its dataclass looks for it
    before = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def run(*words: str | Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, SCRIPT, *SMALL, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_steps_take_nine_minutes_at_most(script: Any) -> None:
    assert sum(seconds for _, seconds in script.STEPS.values()) <= 540


@pytest.mark.long
def test_small_networks_are_timed_and_become_rows(script: Any, tmp_path: Path) -> None:
    out = tmp_path / "first.json"
    found = run("--only", "language", "waits", "--out", out)
    assert json.loads(out.read_text(encoding="utf-8")) == found
    assert found["steps"]["waits"]["frames"] > 0
    rows = script.table(found).splitlines()
    assert len(rows) == 4 and rows[2].startswith("| Qwen3-4B reads 20 tokens | bfloat16 | 1 | ")


def test_a_step_that_takes_too_long_is_stopped_and_the_error_is_reported(script: Any) -> None:
    assert script.run_step("language", list(SMALL), 0.05) == {"error": "stopped after 0.05 s"}
    assert "invalid choice" in script.run_step("language", ["--size", "none"], 60)["error"]


@pytest.mark.slow
def test_every_step_runs(script: Any) -> None:
    found = run()["steps"]
    assert list(found) == list(script.STEPS)
    assert found["detector"]["relative_error"]["float32"] == 0 < found["detector"]["relative_error"]["bfloat16"] < 0.02
    assert found["jobs"]["exit_code"] == 0 and found["jobs"]["out_of_memory"]["batches"] == [8, 4, 2, 2, 4, 2, 2]
    assert found["jobs"]["out_of_memory"]["largest_difference"] < 1e-3
    assert {row["batch"] for row in found["segmenters"]["rows"]} == {1, 8}
