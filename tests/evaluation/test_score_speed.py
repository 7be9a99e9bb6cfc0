"""Scoring stays far faster than straightforward code: half of what `eval/speed/metrics.py` is held to."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import ROOT


def test_ratios_to_straightforward_implementations() -> None:
    """CPU seconds of both sides in one process, in turns; the answers are compared, bit for bit where they can be."""
    command = [sys.executable, str(ROOT / "eval/speed/metrics.py"), "--frames", "3", "--repeats", "3", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["f_identical"] and found["avss_identical"] and found["palette_identical"]
    assert found["f_ratio"] > 20, found
    assert found["avss_ratio"] > 25, found
    assert found["palette_ratio"] > 100, found
