"""Commands that get SIGKILL or a stop signal: no partial files, and the same command finishes the work."""

from __future__ import annotations

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
from tests.jobs.pool import tree
from tests.robustness.faults.conftest import Whole, ended, start, wait_for

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]


def leavings(out: Path) -> dict[str, str]:
    """Results by content, without what differs from run to run: times, and the bits of H.264 encoders."""
    skipped = (".mp4", "report.html", "report.json", "per_clip.csv", "work/shards/")
    return {name: digest for name, digest in tree(out).items() if not any(part in name for part in skipped)}


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
    """The results of `segment` on three videos without interruption."""
    out = tmp_path_factory.mktemp("segmented") / "out"
    assert ended(start("segment", *sorted(pool.glob("*.mp4"))[:3], "--pipeline", recipe, "--out", out)).code == 0
    return leavings(out)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_segment(
    number: signal.Signals, workers: int, pool: Path, recipe: Path, segmented: dict[str, str], tmp_path: Path
) -> None:
    """After any interruption, with any number of workers, it ends with the same files."""
    videos = sorted(pool.glob("*.mp4"))[:3]
    out = tmp_path / "out"
    words = ("segment", *videos, "--pipeline", recipe, "--out", out, "--workers", workers)
    assert interrupt(words, number, lambda: (out / "clips/v00/result.json").is_file()) != 0
    assert not (out / "clips/v02/result.json").exists(), "it was in the middle"
    for path in out.rglob("result.json"):
        json.loads(path.read_bytes())
    assert ended(start(*words)).code == 0
    assert leavings(out) == segmented


@pytest.mark.parametrize("workers", [1, 2])
def test_evaluate(workers: int, recipe: Path, tmp_path: Path) -> None:
    """Killed twice with one or two workers, it ends with the files and figures of an undisturbed run with one."""
    write_layout("s4", tmp_path / "data", {"test": 4}, seed=5)
    out = tmp_path / "out"
    words = ("evaluate", "s4", "--root", tmp_path / "data", "--pipeline", recipe)
    for done in (1, 2):
        command = (*words, "--out", out, "--workers", workers)
        assert interrupt(command, signal.SIGKILL, lambda done=done: len(list(out.rglob("result.json"))) >= done) != 0
        assert not (out / "report.json").exists()
    assert ended(start(*words, "--out", out, "--workers", workers)).code == 0
    assert ended(start(*words, "--out", tmp_path / "whole")).code == 0
    assert leavings(out) == leavings(tmp_path / "whole")
    figures = [json.loads((place / "report.json").read_bytes())["figures"] for place in (out, tmp_path / "whole")]
    assert figures[0] == figures[1]


def test_a_job_that_gets_a_stop_signal_finishes_its_clip(
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
    assert "run the same command again" in outcome.err
    assert ended(start(*words)).code == 0
    whole(out)


def importing(pid: int) -> bool:
    """Whether one of the workers of a driver has begun to import."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    spawned = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return any("_multiarray_umath" in Path(f"/proc/{child}/maps").read_text() for child in spawned)


def test_several_ctrl_c_at_once_give_no_traceback(pool: Path, recipe: Path, tmp_path: Path) -> None:
    for moment in ("work/manifest.json", "run.json", "log"):
        out = tmp_path / moment
        process = start("label", pool, "--pipeline", recipe, "--out", out, "--workers", "1", "--no-cache", PACE="0.3")
        wait_for((out / moment).exists)
        for _ in range(4):
            process.send_signal(signal.SIGINT)
        outcome = ended(process)
        assert outcome.code != 0 and "Traceback" not in outcome.err, (moment, outcome.err)


def test_a_ctrl_c_while_another_is_handled_gives_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **options: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(sys.modules["openavs.cli.app"], "app", interrupted)
    assert main(["list"]) == 130
