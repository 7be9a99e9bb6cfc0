"""Files of a job, written by several workers into folders that they share."""

from __future__ import annotations

import threading
from pathlib import Path

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
