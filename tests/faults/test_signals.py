"""Commands that are killed or asked to end: nothing is half-written, and the same command again finishes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openavs.cli import main
from openavs.synthetic.datasets import write_layout
from tests.faults.conftest import Whole, ended, start, wait_for

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


def leavings(out: Path) -> dict[str, str]:
    """Results by content, without what differs from run to run: times, videos that hold their encoder's clock."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.name in ("run.json", "index.jsonl", "report.html", "report.json", "per_clip.csv") or path.is_dir():
            continue
        data = path.read_bytes()
        if path.name == "result.json":
            data = json.dumps({**json.loads(data), "timings": {}}, sort_keys=True).encode()
        found[path.relative_to(out).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def interrupt(words: tuple[object, ...], number: signal.Signals, moment: Callable[[], object]) -> int:
    """Starts a command, sends it a signal at a moment, and gives its exit code."""
    process = start(*words, PACE="0.3")
    wait_for(moment)
    process.send_signal(number)
    outcome = ended(process)
    assert "Traceback" not in outcome.err
    return outcome.code


@pytest.fixture(scope="module")
def segmented(pool: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `segment` leaves of three videos when nobody interrupts it."""
    out = tmp_path_factory.mktemp("segmented") / "out"
    assert ended(start("segment", *sorted(pool.glob("*.mp4"))[:3], "--pipeline", recipe, "--out", out)).code == 0
    return leavings(out)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_segment(number: signal.Signals, pool: Path, recipe: Path, segmented: dict[str, str], tmp_path: Path) -> None:
    videos = sorted(pool.glob("*.mp4"))[:3]
    out = tmp_path / "out"
    words = ("segment", *videos, "--pipeline", recipe, "--out", out)
    assert interrupt(words, number, lambda: (out / "clips/v00/result.json").is_file()) != 0
    assert not (out / "clips/v02/result.json").exists(), "it was in the middle"
    for path in out.rglob("result.json"):
        json.loads(path.read_bytes())
    assert ended(start(*words)).code == 0
    assert leavings(out) == segmented


def test_evaluate(recipe: Path, tmp_path: Path) -> None:
    write_layout("s4", tmp_path / "data", {"test": 3}, seed=5)
    out = tmp_path / "out"
    words = ("evaluate", "s4", "--root", tmp_path / "data", "--pipeline", recipe)
    assert interrupt((*words, "--out", out), signal.SIGKILL, lambda: list(out.rglob("result.json"))) != 0
    assert not (out / "report.json").exists()
    assert ended(start(*words, "--out", out)).code == 0
    assert ended(start(*words, "--out", tmp_path / "whole")).code == 0
    assert leavings(out) == leavings(tmp_path / "whole")
    figures = [json.loads((place / "report.json").read_bytes())["figures"] for place in (out, tmp_path / "whole")]
    assert figures[0] == figures[1]


def test_a_job_that_is_told_to_end_finishes_the_clip_it_is_at(
    pool: Path, recipe: Path, whole: Whole, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("label", pool, "--pipeline", recipe, "--out", out, "--workers", "1", "--shard-size", "3", "--no-cache")
    code = interrupt(words, signal.SIGTERM, lambda: list(out.glob("clips/*/result.json")))
    assert code == 1
    assert json.loads((out / "run.json").read_bytes())["status"] == "stopped"
    assert ended(start(*words)).code == 0
    whole(out)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.parametrize("times", [1, 2, 5])
def test_ctrl_c_at_the_terminal_while_workers_import_is_a_sentence(
    pool: Path, recipe: Path, whole: Whole, tmp_path: Path, times: int
) -> None:
    """A terminal sends Ctrl-C to the driver and to its workers."""
    out = tmp_path / "out"
    words = ("label", pool, "--pipeline", recipe, "--out", out, "--workers", "2", "--shard-size", "3", "--no-cache")
    process = start(*words, start_new_session=True)
    wait_for(lambda: importing(process.pid))
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    outcome = ended(process)
    assert outcome.code != 0 and "Traceback" not in outcome.err, outcome.err
    assert "run the same again" in outcome.err
    assert ended(start(*words)).code == 0
    whole(out)


def importing(pid: int) -> bool:
    """Whether one of the workers of a driver has begun to import."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    spawned = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return any("_multiarray_umath" in Path(f"/proc/{child}/maps").read_text() for child in spawned)


def test_several_ctrl_c_at_once_are_no_traceback(pool: Path, recipe: Path, tmp_path: Path) -> None:
    for moment in ("plan.json", "run.json", "log"):
        out = tmp_path / moment
        process = start("label", pool, "--pipeline", recipe, "--out", out, "--workers", "1", "--no-cache", PACE="0.3")
        wait_for((out / moment).exists)
        for _ in range(4):
            process.send_signal(signal.SIGINT)
        outcome = ended(process)
        assert outcome.code != 0 and "Traceback" not in outcome.err, (moment, outcome.err)


def test_a_ctrl_c_while_another_is_handled_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(sys.modules["openavs.cli.app"], "app", interrupted)
    assert main(["list"]) == 130
