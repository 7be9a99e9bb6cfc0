"""Memory is bounded by the batch and not by the length of the video."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.plugin_recipe import write_recipe


@pytest.mark.slow
def test_a_video_of_six_times_the_length_takes_no_more_memory(tmp_path: Path) -> None:
    """Without models, whose size would hide what grows: 60 kept pictures of this size are a third of the whole.

    `python eval/bench/memory.py length` measures the same with the embedded models on one and ten minutes of 720p.
    """
    script = str(ROOT / "eval" / "bench" / "memory.py")
    command = [sys.executable, script, "length", "--pipeline", str(write_recipe(tmp_path)), "--json"]
    video = ["--lengths", "10", "60", "--size", "640x360", "--fps", "2"]
    done = subprocess.run([*command, *video], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"seconds_10_mb", "one_minute_mb", "ratio", "seconds"}
    assert found["seconds_10_mb"] > 20  # a process that decodes and writes video
    assert found["ratio"] < 1.12, found
