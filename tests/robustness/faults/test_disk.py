"""A disk that is full, fails or is read-only: the job says so in a sentence, and goes on when the disk is well."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.robustness.faults.conftest import Whole, ended, label, start, wait_for


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("replace", errno.ENOSPC),  # a file cannot take its name
        ("fsync", errno.EIO),  # nor reach the disk
        ("write", errno.EDQUOT),  # the journal
        ("open", errno.EROFS),
    ],
    ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) else value,
)
def test_a_fault_of_the_disk_ends_the_job_and_loses_nothing(
    call: str, number: int, pool: Path, recipe: Path, whole: Whole, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    hit = label(pool, recipe, out, FAULT=f"{call}:{number}")
    assert hit.code in (1, 2)
    assert "Traceback" not in hit.err
    assert os.strerror(number) in hit.err + hit.out
    assert not list(out.rglob("*.part"))
    again = label(pool, recipe, out)
    assert again.code == 0, again.err
    whole(out)


def test_a_log_that_does_not_fit_on_the_disk_gives_no_traceback(tmp_path: Path) -> None:
    """The worker's log is on the same disk as the results, whose fault is reported."""
    script = (
        "import errno, logging, os\n"
        "from pathlib import Path\n"
        "from openavs.jobs.job import Job\n"
        "from openavs.jobs.executors.base import log_to_file\n"
        f"log_to_file(Job(Path({str(tmp_path)!r}), 'key', Path('.'), {{}}))\n"
        "handler = logging.getLogger().handlers[0]\n"
        "handler.setStream(open('/dev/full', 'w'))\n"
        "logging.error('the worker ends')\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 kB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_really_full(pool: Path, recipe: Path, whole: Whole, small_disk: Path) -> None:
    full = label(pool, recipe, small_disk / "out")
    assert full.code in (1, 2)
    assert os.strerror(errno.ENOSPC) in full.err + full.out
    assert "Traceback" not in full.err
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert label(pool, recipe, small_disk / "out").code == 0
    whole(small_disk / "out")


def test_a_disk_that_became_read_only(pool: Path, recipe: Path, whole: Whole, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = label(pool, recipe, small_disk / "out")
    assert refused.code == 2
    assert "--out" in refused.err
    assert "Traceback" not in refused.err
    subprocess.run(["mount", "-o", "remount,rw,size=20m", str(small_disk)], check=True)
    assert label(pool, recipe, small_disk / "out").code == 0
    whole(small_disk / "out")


def test_a_result_folder_that_is_removed_in_the_middle(pool: Path, recipe: Path, whole: Whole, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("label", pool, "--pipeline", recipe, "--out", out, "--workers", "1", "--shard-size", "3", "--no-cache")
    job = start(*words, PACE="0.3")
    wait_for(lambda: list(out.glob("clips/*/result.json")))
    out.rename(tmp_path / "elsewhere")  # as a removal that takes no time
    lost = ended(job)
    assert lost.code == 2
    assert lost.err.splitlines()[-1].startswith(f"openavs: {out} was removed while the job ran")
    assert "Traceback" not in lost.err
    shutil.rmtree(out, ignore_errors=True)
    assert label(pool, recipe, out).code == 0
    whole(out)
