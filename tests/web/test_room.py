"""The disk space that visitors share."""

from __future__ import annotations

import asyncio
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from openavs.web import room as module
from openavs.web.guard import RequestRefused
from openavs.web.room import DiskQuota


class Broken(Exception):
    """What the parser of uploads cleans up after."""


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    uploads, visits = tmp_path / "uploads", tmp_path / "visits"
    (uploads / "hash").mkdir(parents=True)
    (visits / "token").mkdir(parents=True)
    return uploads, visits


def test_files_count_once_whatever_links_there_are(folders: tuple[Path, Path]) -> None:
    uploads, visits = folders
    (uploads / "hash" / "a.mp4").write_bytes(bytes(300))
    os.link(uploads / "hash" / "a.mp4", visits / "token" / "a.mp4")
    (visits / "token" / "overlay.mp4").write_bytes(bytes(50))
    assert DiskQuota(uploads, visits, 1000, Broken).used() == 350


def test_a_visit_that_ends_while_its_files_are_counted(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, visits = folders
    (uploads / "hash" / "a.mp4").write_bytes(bytes(300))
    (visits / "token" / "given").mkdir()
    (visits / "token" / "overlay.mp4").write_bytes(bytes(50))
    lstat = os.lstat

    def vanishing(path: str) -> os.stat_result:
        if path.endswith("overlay.mp4"):
            monkeypatch.setattr(os, "lstat", lstat)
            shutil.rmtree(visits / "token")
        return lstat(path)

    monkeypatch.setattr(os, "lstat", vanishing)
    assert DiskQuota(uploads, visits, 1000, Broken).used() == 300
    assert not (visits / "token").exists()


def test_uploads_on_their_way_count(folders: tuple[Path, Path]) -> None:
    room = DiskQuota(*folders, 1 << 20, Broken)
    with room.reserved(900_000):
        with pytest.raises(
            RequestRefused, match="take the 1 MB that this server has for them; try again later"
        ) as problem:
            room.reserved(200_000).__enter__()
        assert problem.value.status == 507
    with room.reserved(200_000):
        pass


def test_leftovers_go_when_no_upload_is_on_its_way(folders: tuple[Path, Path]) -> None:
    uploads, _ = folders
    room = DiskQuota(*folders, 1 << 20, Broken)
    (uploads / "hash" / "a.mp4").write_bytes(b"finished")
    with room.reserved(10):
        with room.reserved(10):
            (uploads / "tmpabc").write_bytes(b"broken off")
        assert (uploads / "tmpabc").exists()  # it might be that of the other one
    assert [path.name for path in uploads.rglob("*")] == ["hash", "a.mp4"]


def test_an_upload_that_ends_early_or_stalls_is_an_error(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = DiskQuota(*folders, 1 << 20, Broken)
    part = {"type": "http.request", "body": b"x", "more_body": True}
    end = {"type": "http.request", "body": b"", "more_body": False}
    gone = {"type": "http.disconnect"}

    def read(*messages: dict[str, Any]) -> list[str]:
        waiting = list(messages)

        async def receive() -> Any:
            if not waiting:
                await asyncio.sleep(60)
            return waiting.pop(0)

        async def main() -> list[str]:
            whole = room.whole(receive)
            return [str((await whole())["type"]) for _ in range(3)]

        with ThreadPoolExecutor(1) as aside:  # this thread may have a loop already: a browser's
            return aside.submit(lambda: asyncio.run(main())).result()

    assert read(part, end, gone) == ["http.request", "http.request", "http.disconnect"]
    with pytest.raises(Broken, match="the upload ended early"):
        read(part, gone)
    monkeypatch.setattr(module, "STALLED", 0.05)
    with pytest.raises(Broken, match="the upload stopped for"):
        read(part)
