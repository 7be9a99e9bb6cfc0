"""Limit of the files of all sessions, and uploads that fail."""

from __future__ import annotations

import asyncio
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.formparsers import MultiPartException

from openavs.web import server
from openavs.web.server import DiskQuota, RequestRefused, check_complete


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    uploads, sessions = tmp_path / "uploads", tmp_path / "sessions"
    (uploads / "hash").mkdir(parents=True)
    (sessions / "token").mkdir(parents=True)
    return uploads, sessions


def test_linked_files_count_once(folders: tuple[Path, Path]) -> None:
    uploads, sessions = folders
    (uploads / "hash" / "a.mp4").write_bytes(bytes(300))
    os.link(uploads / "hash" / "a.mp4", sessions / "token" / "a.mp4")
    (sessions / "token" / "overlay.mp4").write_bytes(bytes(50))
    assert DiskQuota(uploads, sessions, 1000).used() == 350


def test_a_session_may_end_while_its_files_are_counted(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, sessions = folders
    (uploads / "hash" / "a.mp4").write_bytes(bytes(300))
    (sessions / "token" / "inputs").mkdir()
    (sessions / "token" / "overlay.mp4").write_bytes(bytes(50))
    lstat = os.lstat

    def vanishing(path: str) -> os.stat_result:
        if path.endswith("overlay.mp4"):
            monkeypatch.setattr(os, "lstat", lstat)
            shutil.rmtree(sessions / "token")
        return lstat(path)

    monkeypatch.setattr(os, "lstat", vanishing)
    assert DiskQuota(uploads, sessions, 1000).used() == 300
    assert not (sessions / "token").exists()


def test_uploads_in_progress_count(folders: tuple[Path, Path]) -> None:
    quota = DiskQuota(*folders, 1 << 20)
    with quota.reserve(900_000):
        with pytest.raises(
            RequestRefused, match="the limit of 1 MB for the files of all users is reached; try again later"
        ) as error:
            quota.reserve(200_000).__enter__()
        assert error.value.status == 507
    with quota.reserve(200_000):
        pass


def test_incomplete_uploads_are_removed(folders: tuple[Path, Path]) -> None:
    uploads, _ = folders
    quota = DiskQuota(*folders, 1 << 20)
    (uploads / "hash" / "a.mp4").write_bytes(b"finished")
    with quota.reserve(10):
        with quota.reserve(10):
            (uploads / "tmpabc").write_bytes(b"incomplete")
        assert (uploads / "tmpabc").exists()  # another upload is in progress
    assert [path.name for path in uploads.rglob("*")] == ["hash", "a.mp4"]


def test_an_upload_that_ends_early_or_stalls_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
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
            whole = check_complete(receive)
            return [str((await whole())["type"]) for _ in range(3)]

        with ThreadPoolExecutor(1) as executor:  # this thread may have the event loop of a browser
            return executor.submit(lambda: asyncio.run(main())).result()

    assert read(part, end, gone) == ["http.request", "http.request", "http.disconnect"]
    with pytest.raises(MultiPartException, match="the upload ended early"):
        read(part, gone)
    monkeypatch.setattr(server, "UPLOAD_TIMEOUT", 0.05)
    with pytest.raises(MultiPartException, match="upload the file again"):
        read(part)
