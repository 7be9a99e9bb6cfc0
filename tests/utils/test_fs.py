"""Files of a job, written by several workers into folders that they share."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from openavs.jobs.checkpoint import read_timings, save_timings
from openavs.utils import fs
from openavs.utils.fs import (
    remove_empty,
    remove_file,
    remove_folder,
    stamp,
    sync_to_disk,
    write_hashed,
    write_whole,
)


def test_empty_folders_are_removed_although_the_lowest_is_gone_already(tmp_path: Path) -> None:
    (tmp_path / "labels" / "test").mkdir(parents=True)
    remove_empty(tmp_path / "labels" / "test" / "dog", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("times", [1, 5])
def test_a_folder_that_another_worker_removes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    path = tmp_path / "labels" / "test" / "dog" / "0.png"
    left = [times]
    really = fs.write_whole

    def write_late(path: Path, data: bytes) -> str:
        if left[0]:
            left[0] -= 1
            remove_empty(path.parent, tmp_path)
        return really(path, data)

    monkeypatch.setattr(fs, "write_whole", write_late)
    assert write_hashed(path, b"mask") == stamp(path.read_bytes())
    assert left == [0]


def test_a_folder_that_goes_every_time_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "labels" / "0.png"
    really, times = Path.mkdir, []

    def make_and_lose(folder: Path, *args: Any, **options: Any) -> None:
        really(folder, *args, **options)
        folder.rmdir()
        times.append(folder)

    monkeypatch.setattr(Path, "mkdir", make_and_lose)
    with pytest.raises(FileNotFoundError, match="labels"):
        write_hashed(path, b"mask", retries=7)
    assert len(times) == 8


def test_a_file_appears_whole_under_its_name_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    (tmp_path / ".a.png.part").write_bytes(b"left by a killed run, and longer")
    assert write_whole(path, b"mask") == f"4:{hashlib.sha256(b'mask').hexdigest()}"
    assert path.read_bytes() == b"mask"
    with pytest.raises(TypeError):
        write_whole(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"mask" and [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_only_what_is_empty_goes_with_what_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "out"
    for name in ("a/b/c/1.png", "a/b/c/.2.png.part", "a/d/3.png", "e/f/4.png", "e/f/g/5.png"):
        write_hashed(top / name, b"mask")
    remove_file(top / "a/b/c/1.png", top)
    assert (top / "a/b/c").is_dir(), "half of another file is still there"
    remove_file(top / "a/b/c/2.png", top)
    assert not (top / "a/b").exists() and (top / "a/d/3.png").exists()
    remove_folder(top / "e/f", top)
    assert not (top / "e").exists()
    remove_folder(top / "a", top)
    remove_folder(top / "never", top)
    assert top.is_dir() and not list(top.iterdir()), "the top stays"


def test_nothing_outside_of_the_top_is_removed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere/a").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    remove_empty(tmp_path / "elsewhere/a", tmp_path / "out")
    remove_empty(tmp_path / "out", tmp_path / "out")
    assert (tmp_path / "elsewhere/a").is_dir() and (tmp_path / "out").is_dir()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    elsewhere, link = write_hashed(tmp_path / "elsewhere/1.png", b"mask"), tmp_path / "out/clips/a"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere")
    remove_folder(link, tmp_path / "out")
    assert not link.is_symlink() and stamp((tmp_path / "elsewhere/1.png").read_bytes()) == elsewhere


def test_what_is_not_there_cannot_be_flushed(tmp_path: Path) -> None:
    write_hashed(tmp_path / "a/b/1.png", b"mask")
    sync_to_disk([tmp_path / "a/b/1.png"])
    with pytest.raises(FileNotFoundError):
        sync_to_disk([tmp_path / "a/b/1.png", tmp_path / "a/b/2.png"])


def test_seconds_are_read_back_and_a_damaged_log_costs_nothing_else(tmp_path: Path) -> None:
    short, long = ({"seconds": seconds, "stages": {"detect": 0.5}} for seconds in (1.0, 2.5))
    save_timings(tmp_path, 3, {"b": long, "a": short})
    assert read_timings(tmp_path, 3) == {"a": short, "b": long}
    assert read_timings(tmp_path, 4) == {}
    path = tmp_path / "log/timings/000003.json"
    part = json.dumps({"a": {"seconds": "soon", "stages": {}}, "b": long, "c": {"seconds": 1.0}}).encode()
    for damaged, left in ((b"{", {}), (b"[" * 100_000, {}), (b"[1]", {}), (part, {"b": long})):
        path.write_bytes(damaged)
        assert read_timings(tmp_path, 3) == left
