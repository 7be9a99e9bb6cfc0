"""The script for the first minutes on a GPU runs on a CPU with small networks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

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
    assert len(rows) == 4 and rows[2].startswith("| Qwen3-4B reads 20 tokens | bfloat16 |  | 1 | ")


def test_docs_have_the_committed_results_or_say_that_there_are_none(script: Any) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    assert script.in_page(text, script.section(script.results())) == text
    row = {"what": "sam3", "things": 4, "batch": 8, "ms": 20.0, "clips_per_s": 10.0, "peak_gb": None}
    steps = {"pipelines": {"rows": [row]}, "jobs": {"error": "stopped after 40 s"}}
    written = script.section({"device": "GPU X", "torch": "2", "date": "2026-12-01", "steps": steps})
    assert "| sam3 |  | 4 | 8 | 20.0 | 10.0 |" in written and "Steps that failed: jobs: stopped after 40 s." in written


def test_operations_and_copies_are_counted(script: Any, tmp_path: Path) -> None:
    """The meta device stands for the other one: it has no values, so nothing can be copied back from it."""
    a, b = torch.ones(3, 4), torch.ones(4, 5)

    def work() -> None:
        (a @ b).to("meta")

    counted = script.count(script.Setting("cpu", False, tmp_path), work)
    assert counted == {"flop": 2 * 3 * 4 * 5, "syncs": 0, "to_device_mb": 3 * 5 * 4 / 1e6, "from_device_mb": 0}


def test_a_step_that_takes_too_long_is_stopped_and_the_error_is_reported(script: Any) -> None:
    assert script.run_step("language", list(SMALL), 0.05) == {"error": "stopped after 0.05 s"}
    assert "invalid choice" in script.run_step("language", ["--size", "none"], 60)["error"]


@pytest.mark.long
def test_every_step_runs(script: Any) -> None:
    found = run()["steps"]
    assert list(found) == list(script.STEPS)
    assert found["detector"]["relative_error"]["float32"] == 0 < found["detector"]["relative_error"]["bfloat16"] < 0.02
    assert found["jobs"]["exit_code"] == 0 and found["jobs"]["out_of_memory"]["batches"] == [8, 4, 2, 2, 4, 2, 2]
    assert found["jobs"]["out_of_memory"]["largest_difference"] < 1e-3
    assert {(row["what"], row["things"]) for row in found["pipelines"]["rows"]} == {
        (name, things) for name in script.RECIPES for things in script.THINGS[:2]
    }
    assert all(row["clips_per_s"] > 0 and row["roofline_share"] > 0 for row in found["pipelines"]["rows"])
    assert len(found["compile"]["first_call_seconds"]) == 2
