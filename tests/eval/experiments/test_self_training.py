"""The self-training experiment with several seeds, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_experiment_runs_and_resumes(tmp_path: Path) -> None:
    command = [sys.executable, "eval/experiments/self_training.py", "--out", str(tmp_path), "--layouts", "s4", "ms3"]
    command += ["--seeds", "1", "2", "--train", "4", "--clips", "2", "--json", "--set", "max_steps=2", "model.side=32"]
    command += ["--train-seed", "1", "--students", "tpavi", "avsegformer"]
    first, second = (
        json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout)
        for _ in range(2)
    )
    for layout in ("s4", "ms3"):
        bound = {"constant masks"} if layout == "ms3" else set()
        students = {"tpavi", "tpavi on truth", "avsegformer", "avsegformer on truth"}
        assert set(first["figures"][layout]["1"]) == {"teacher", "cpu_s"} | students | bound
        assert " +- " in first["means"][layout]["teacher miou"]
        assert " to " in first["means"][layout]["avsegformer difference"]
        recipe = json.loads((tmp_path / f"{layout}-2" / "tpavi" / "labels" / "student" / "train.json").read_text())
        assert recipe["data"]["labels"] == str(tmp_path / f"{layout}-1" / "labels") and recipe["data"]["clips"] == 4
    assert first["means"] == second["means"]
