"""The self-training experiment with several seeds, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
        recipe = json.loads((tmp_path / f"{layout}-2" / "tpavi" / "paper" / "student" / "train.json").read_text())
        assert recipe["data"]["labels"] == str(tmp_path / f"{layout}-1" / "labels") and recipe["data"]["clips"] == 4
    assert first["means"] == second["means"]


@pytest.mark.slow
def test_choices_of_self_training_are_compared_in_one_command(tmp_path: Path) -> None:
    choices = ["paper", "weighted", "agreement", "average", "rounds", "corrected"]
    command = [sys.executable, "eval/experiments/self_training.py", "--out", str(tmp_path), "--layouts", "s4"]
    command += ["--seeds", "1", "--train", "6", "--clips", "2", "--no-truth", "--json", "--choices", *choices]
    command += ["--set", "max_steps=2", "model.side=32"]
    answer = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout)
    assert list(answer["figures"]["s4"]["1"]) == ["teacher", "tpavi", *(f"tpavi, {c}" for c in choices[1:]), "cpu_s"]

    def trained(choice: str) -> dict[str, Any]:
        text = (tmp_path / "s4-1" / "tpavi" / choice / "student" / "train.json").read_text()
        return dict(json.loads(text))

    weighted = [trained(choice)["recipe"]["labels"]["weighted"] for choice in choices]
    assert weighted == [choice == "weighted" for choice in choices]
    assert [trained(choice)["recipe"]["ema"] for choice in choices] == [None, None, None, 0.99, None, None]
    assert trained("agreement")["data"]["clips"] <= trained("paper")["data"]["clips"] == 6
    assert trained("corrected")["data"]["person"] == 1  # a tenth of six clips
    assert trained("rounds")["data"]["labels"].endswith("rounds/labels")
