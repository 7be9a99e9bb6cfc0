"""State files of a job that are damaged, or replaced by something else, cost one sentence, and never a traceback."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError
from openavs.jobs.progress import check_models
from tests.conftest import ROOT, Outcome
from tests.robustness.faults.conftest import Whole, ended, label, start, wait_for

Openavs = Callable[..., Outcome]
FACTS = {"a/model": {"revision": "1"}}


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Ends a test that waits at a FIFO."""

    def end(*args: object) -> None:
        raise TimeoutError("waited for two minutes")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def finished(pool: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    assert label(pool, recipe, out).code == 0
    return out


@pytest.fixture
def again(openavs: Openavs, finished: Path, pool: Path, recipe: Path, tmp_path: Path) -> Callable[..., Outcome]:
    """Runs the job again in a copy of its folder, in this process."""
    shutil.copytree(finished, tmp_path / "out")
    words = ("label", pool, "--pipeline", recipe, "--out", tmp_path / "out", "--workers", "1", "--shard-size", "3")

    def run(*more: str) -> Outcome:
        return openavs(*words, "--no-cache", "--json", *more)

    return run


TOP = ("work/manifest.json", "manifest.jsonl", "work/sizes", "work/models.json", "run.json", "index.jsonl")


@pytest.mark.parametrize("name", [*TOP, "work/shards/000000.json", "log/timings/000000.json"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "FIFO"])
def test_something_else_in_a_files_place_is_one_sentence(
    again: Callable[..., Outcome], tmp_path: Path, name: str, make: Callable[[Path], None], whole: Whole
) -> None:
    path = tmp_path / "out" / name
    path.unlink()
    make(path)
    said = again()
    assert "Traceback" not in said.err
    if name.startswith("log/"):  # it only costs the column `seconds`
        assert said.code == 0, said.err
        return
    assert said.code == 2
    assert str(path) in said.err and "regular file" in said.err and said.err.count("\n") == 1
    if name == "work/shards/000000.json":
        path.rmdir() if path.is_dir() else path.unlink()
        assert again().code == 0
    else:
        assert again("--overwrite").code == 0
    whole(tmp_path / "out")


@pytest.mark.parametrize("name", ["work/shards", "clips", "labels", "log"])
def test_a_file_in_a_folders_place_is_one_sentence(again: Callable[..., Outcome], tmp_path: Path, name: str) -> None:
    shutil.rmtree(tmp_path / "out" / name)
    (tmp_path / "out" / name).write_bytes(b"x")
    said = again()
    assert said.code == 2
    assert f"{tmp_path}/out/{name} is not a folder" in said.err


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nothing")])
def test_a_journal_that_is_not_a_file_is_one_sentence(
    again: Callable[..., Outcome], tmp_path: Path, make: Callable[[Path], None], whole: Whole
) -> None:
    out = tmp_path / "out"
    (out / "work/shards/000001.json").unlink()
    journal = out / "work/000001.jsonl"
    make(journal)
    said = again()
    assert (said.code, "Traceback" in said.err) == (2, False)
    assert f"{journal} is damaged (it is not a regular file); remove it and run the same command again" in said.err
    journal.rmdir() if journal.is_dir() else journal.unlink()
    assert again().code == 0
    whole(out)


@pytest.mark.parametrize("damage", ["gone", "flipped", "longer"])
def test_a_plan_whose_lines_are_lost_or_changed_is_written_again(
    again: Callable[..., Outcome], tmp_path: Path, damage: str, whole: Whole
) -> None:
    path = tmp_path / "out/manifest.jsonl"
    content = path.read_bytes()
    (tmp_path / "out/work/shards/000001.json").unlink()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content.replace(b"v05", b"v04") if damage == "flipped" else content + content)
    said = again()
    assert (said.code, "Traceback" in said.err) == (0, False), said.err
    whole(tmp_path / "out")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\0\0\0",
        b"[]",
        b"7",
        b'{"a/model": 1}',
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"a/model": {"re',
    ],
)
def test_damaged_models_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/models.json").write_bytes(content)
    with pytest.raises(InputError, match=r"models\.json is damaged \(.+\); remove it and run the same command again"):
        check_models(tmp_path, FACTS)


def test_damaged_models_end_a_job_in_a_sentence(again: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "out/work/shards/000001.json").unlink()
    (tmp_path / "out/work/models.json").write_bytes(b"{")
    said = again()
    assert said.code == 2
    assert "models.json is damaged" in said.err and "Traceback" not in said.err


def test_a_folder_that_may_not_be_written_is_named(
    again: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `chmod 555`, which does not bind root."""
    really = os.open

    def refusing(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if str(path).endswith(".lock") and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", refusing)
    said = again()
    assert said.code == 2
    assert f"the output folder {tmp_path}/out cannot be written (Permission denied); change its permissions" in said.err


def test_a_folder_that_is_removed_file_by_file_is_named(pool: Path, recipe: Path, whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("label", pool, "--pipeline", recipe, "--out", out, "--workers", "1", "--shard-size", "3", "--no-cache")
    job = start(*words, PACE="0.3")
    wait_for(lambda: list(out.glob("clips/*/result.json")))
    while (out / "work/manifest.json").exists():
        shutil.rmtree(out, ignore_errors=True)
    lost = ended(job)
    assert lost.code == 2
    said = f"{out} was removed while the job ran, and its results are lost; remove what is left of it and run again"
    assert lost.err.splitlines()[-1] == f"openavs: {said}"
    assert "Traceback" not in lost.err
    shutil.rmtree(out, ignore_errors=True)
    assert ended(start(*words)).code == 0
    whole(out)


def test_results_that_are_removed_while_a_job_runs_are_made_again_by_the_next(
    pool: Path, recipe: Path, whole: Whole, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ("label", pool, "--pipeline", recipe, "--out", out, "--workers", "1", "--shard-size", "3", "--no-cache")
    job = start(*words, PACE="0.3")
    wait_for(lambda: list(out.glob("clips/*/result.json")))
    shutil.rmtree(out / "clips", ignore_errors=True)
    lost = ended(job)
    assert (lost.code, "Traceback" in lost.err) == (1, False), lost.err
    assert "was removed or replaced while the job ran" in lost.err
    assert ended(start(*words)).code == 0
    whole(out)


NO_LOCKS = "import fcntl\nfcntl.lockf = lambda *args: None\n"


def test_two_jobs_to_which_all_locks_are_granted_end_without_a_traceback_and_the_next_heals(
    pool: Path, recipe: Path, whole: Whole, tmp_path: Path
) -> None:
    """As on NFS that is mounted with `nolock`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(NO_LOCKS)
    out = tmp_path / "out"
    words = ("label", pool, "--pipeline", recipe, "--out", out, "--workers", "2", "--shard-size", "3", "--no-cache")
    jobs = [start(*words, PACE="0.1", PYTHONPATH=f"{tmp_path}/site:{ROOT}") for _ in range(2)]
    for job in jobs:
        done = ended(job)
        assert "Traceback" not in done.err, done.err
        assert done.code in (0, 1, 2), done.err
    assert ended(start(*words)).code == 0
    whole(out)
