"""Fixtures of the fault tests: videos, a command in its own process, and the results of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Outcome
from tests.jobs.pool import tree, videos
from tests.robustness.faults.injection import faulty_recipe

Start = Callable[..., "subprocess.Popen[str]"]
Label = Callable[..., Outcome]


Whole = Callable[[Path], None]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Counts of faults that were injected and survived, and of lost results."""
    own = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if "faults" in report.keywords and report.when == "call"
    ]
    facts = [fact for report in own for fact in report.user_properties]
    compared, lost = (sum(int(n) for what, n in facts if what == name) for name in ("compared", "lost"))
    survived = sum(report.passed for report in own)
    terminalreporter.write_line(
        f"faults: {len(own)} brought about, {survived} survived; "
        f"{compared} files of results compared with those of an undisturbed run, {lost} lost or different"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder is the suite `-m faults`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="package")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of two seconds."""
    return videos(tmp_path_factory.mktemp("pool") / "videos", 6)


@pytest.fixture(scope="package")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faulty_recipe(tmp_path_factory.mktemp("recipe"))


def start(*words: object, start_new_session: bool = False, **environment: str) -> subprocess.Popen[str]:
    """Starts `openavs` in a new process, optionally in a new process group."""
    return subprocess.Popen(
        [sys.executable, "-m", "openavs", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def ended(process: subprocess.Popen[str]) -> Outcome:
    """Waits for the end."""
    out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, out, err)


def label(pool: Path, recipe: Path, out: Path, **environment: str) -> Outcome:
    """Runs `openavs label` with one worker to its end."""
    words = ("label", pool, "--pipeline", recipe, "--out", out, "--workers", "1", "--shard-size", "3", "--no-cache")
    return ended(start(*words, "--json", **environment))


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits until something is true; fails when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="package")
def undisturbed(pool: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The result tree of the job when nothing goes wrong."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    done = label(pool, recipe, out)
    assert done.code == 0, done.err
    return tree(out)


@pytest.fixture
def whole(undisturbed: dict[str, str], record_property: Callable[[str, object], None]) -> Whole:
    """Asserts that a job's folder holds what the undisturbed one holds, and has the difference counted."""

    def check(out: Path) -> None:
        found = tree(out)
        lost = {name for name in undisturbed.keys() | found.keys() if undisturbed.get(name) != found.get(name)}
        record_property("compared", len(undisturbed))
        record_property("lost", len(lost))
        assert not lost

    return check
