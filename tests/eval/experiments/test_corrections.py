"""The experiment that plays the person, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_corrected_clips_are_those_of_the_queue_and_random_ones(tmp_path: Path) -> None:
    command = [sys.executable, "eval/experiments/corrections.py", "--out", str(tmp_path), "--train", "4", "--clips"]
    command += ["2", "--share", "0.5", "--json", "--set", "max_steps=2", "model.side=32"]
    first, second = (
        json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout)
        for _ in range(2)
    )
    assert [(row["choice"], row["corrected"]) for row in first] == [("none", 0), ("least certain", 2), ("random", 2)]
    assert first[1]["gain"] == pytest.approx(100 * (first[1]["miou"] - first[0]["miou"]))
    assert first == second
    trained = json.loads((tmp_path / "s4-1" / "tpavi" / "random-2" / "student" / "train.json").read_text())
    assert trained["data"]["person"] == 2
