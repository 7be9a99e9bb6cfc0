"""Says at the end of a test run what hostile media were tried and what came of them."""

from __future__ import annotations

import sys
from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line, where the corpus was run."""
    corpus = sys.modules.get("tests.media.test_hostile")
    if corpus is not None and (tried := corpus.TRIED):
        ends = Counter(one["outcome"] for one in tried)
        most, base = (max(one.get(what, 0) for one in tried) for what in ("megabytes", "base"))
        terminalreporter.write_line(
            f"hostile media: {len(tried)} tried, {ends['crash']} crashes, {ends['hang']} hangs; "
            f"at most {most} MB, of which the process alone has {base} MB"
        )
