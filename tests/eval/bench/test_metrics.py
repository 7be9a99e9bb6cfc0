"""Scoring stays much faster than plain implementations: at least half of the measured ratios."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import ROOT


def test_ratios_to_plain_implementations() -> None:
    """CPU seconds of both sides, alternately in one process; the outputs are compared."""
    command = [sys.executable, str(ROOT / "eval/bench/metrics.py"), "--frames", "3", "--repeats", "3", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["f_identical"] and figures["avss_identical"] and figures["palette_identical"]
    assert figures["f_ratio"] > 20, figures
    assert figures["avss_ratio"] > 25, figures
    assert figures["palette_ratio"] > 100, figures
