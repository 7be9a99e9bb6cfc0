"""Files of a job, written by several workers into folders that they share."""

from __future__ import annotations

import threading
from pathlib import Path

from openavs.jobs.seconds import read_seconds, save_seconds
from openavs.jobs.writing import put, remove_empty, remove_file


def test_a_folder_that_another_worker_removes_meanwhile_is_made_again(tmp_path: Path) -> None:
    shared = tmp_path / "labels" / "test" / "dog"
    ended = threading.Event()

    def clear_up() -> None:
        while not ended.is_set():
            remove_empty(shared, tmp_path)

    other = threading.Thread(target=clear_up)
    other.start()
    try:
        for number in range(500):
            put(shared / f"{number}.png", b"mask")
            assert (shared / f"{number}.png").read_bytes() == b"mask"
            remove_file(shared / f"{number}.png", tmp_path)
    finally:
        ended.set()
        other.join()
    assert not list(tmp_path.rglob("*.part"))


def test_seconds_are_read_back_and_a_damaged_log_costs_nothing_else(tmp_path: Path) -> None:
    save_seconds(tmp_path, 3, {"b": 2.5, "a": 1.0})
    assert read_seconds(tmp_path, 3) == {"a": 1.0, "b": 2.5}
    assert read_seconds(tmp_path, 4) == {}
    path = tmp_path / "log/seconds/000003.json"
    for damaged, left in ((b"{", {}), (b"[" * 100_000, {}), (b"[1]", {}), (b'{"a": "soon", "b": 2.0}', {"b": 2.0})):
        path.write_bytes(damaged)
        assert read_seconds(tmp_path, 3) == left
