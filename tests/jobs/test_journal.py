"""The journal of a shard: entries count only if their files match, and a cut line costs one clip."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from openavs.jobs.checkpoint import ShardJournal
from openavs.utils.fs import write_hashed

OK = {"status": "ok", "rejected": {}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work" / "000003.jsonl"


def timing(seconds: float) -> dict[str, Any]:
    return {"seconds": seconds, "stages": {"detect": 0.5}}


def started(path: Path) -> ShardJournal:
    journal = ShardJournal.read(path)
    journal.start()
    return journal


def test_what_was_written_is_read_back(path: Path) -> None:
    journal = started(path)
    journal.begin("a")
    journal.begin("b")
    journal.begin("c")
    journal.finish({"id": "a", **OK}, {"clips/a/result.json": "0f"}, timing(1.5))
    journal.finish({"id": "b", **OK}, {})
    journal.lay_aside("c")
    journal.begin("d")
    again = ShardJournal.read(path)
    assert again.finished == {"a": ({"id": "a", **OK}, {"clips/a/result.json": "0f"}), "b": ({"id": "b", **OK}, {})}
    assert again.timings == {"a": timing(1.5)}, "of b it is not known"
    assert again.begun == {"d"}
    assert (again.finished, again.timings) == (journal.finished, journal.timings)
    assert again.path == path


def test_without_a_file_nothing_was_done(path: Path) -> None:
    assert ShardJournal.read(path) == ShardJournal(path)
    assert not path.parent.exists(), "reading makes no folder"


def test_a_new_run_has_nothing_under_way_and_keeps_what_is_finished(path: Path) -> None:
    journal = started(path)
    journal.begin("a")
    journal.finish({"id": "a", **OK}, {})
    journal.begin("b")
    journal = ShardJournal.read(path)
    assert journal.begun == {"b"}
    journal.start()
    assert journal.begun == set()
    assert ShardJournal.read(path).begun == set()
    assert set(ShardJournal.read(path).finished) == {"a"}


def test_a_clip_that_is_done_again_has_its_last_row(path: Path) -> None:
    journal = started(path)
    journal.finish({"id": "a", "status": "failed", "reason": "missing", "rejected": {}}, {}, timing(3.0))
    journal.finish({"id": "a", **OK}, {"f": "1"}, timing(4.0))
    assert ShardJournal.read(path).finished == {"a": ({"id": "a", **OK}, {"f": "1"})}
    assert ShardJournal.read(path).timings == {"a": timing(4.0)}


def test_a_line_that_was_cut_short_takes_no_other_with_it(path: Path) -> None:
    journal = started(path)
    journal.finish({"id": "a", **OK}, {})
    journal.finish({"id": "b", **OK}, {})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        journal = started(path)
        journal.finish({"id": "c", **OK}, {})
        found = set(ShardJournal.read(path).finished)
        assert found == {"c"} | {clip for clip in "ab" if whole.index(f'"{clip}"'.encode()) < _last_whole(whole, cut)}


def _last_whole(whole: bytes, cut: int) -> int:
    """The end of the last complete line after a cut, without its newline."""
    ends = [end for end, byte in enumerate(whole) if byte == ord("\n") and end <= cut]
    return ends[-1] if ends else 0


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe", b"[]", b"null", b"7", b'"start"', b"{}", b'{"begin": 3}', b'{"aside": ["a"]}',
        b'{"row": null, "files": {}}', b'{"row": {"id": "x", "status": "ok"}, "files": {}}',
        b'{"row": {"id": "x", "status": "ok", "rejected": {}}}',
        b'{"row": {"id": "x", "status": "ok", "rejected": {}}, "files": []}',
        b'{"row": {"id": "x", "status": "failed", "rejected": {}}, "files": {}}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_line_of_no_meaning_is_left_out(path: Path, line: bytes) -> None:
    journal = started(path)
    journal.finish({"id": "a", **OK}, {})
    with path.open("ab") as file:
        file.write(line + b"\n")
    journal.begin("b")
    again = ShardJournal.read(path)
    assert (set(again.finished), again.begun) == ({"a"}, {"b"})


def test_only_entries_whose_files_match_count_as_finished(path: Path, tmp_path: Path) -> None:
    journal = started(path)
    for clip in ("gone", "changed", "whole"):
        files = {f"clips/{clip}/{n}.png": write_hashed(tmp_path / f"clips/{clip}/{n}.png", b"mask") for n in range(2)}
        journal.finish({"id": clip, **OK}, files)
    journal.finish({"id": "nothing", "status": "failed", "reason": "missing", "rejected": {}}, {})
    (tmp_path / "clips/gone/1.png").unlink()
    (tmp_path / "clips/changed/0.png").write_bytes(b"Mask")
    journal.forget_changed(tmp_path)
    assert set(journal.finished) == {"whole", "nothing"}


def test_lines_are_plain_ascii_whatever_a_clip_is_called(path: Path) -> None:
    journal = started(path)
    journal.begin("hünd\udc80\n")
    assert path.read_bytes().isascii()
    assert json.loads(path.read_bytes().splitlines()[-1]) == {"begin": "hünd\udc80\n"}
    assert ShardJournal.read(path).begun == {"hünd\udc80\n"}


def test_a_journal_is_never_executed(path: Path) -> None:
    started(path)
    assert path.stat().st_mode & 0o111 == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_line_that_is_written_in_part_is_a_full_disk(path: Path) -> None:
    import resource

    journal = started(path)
    journal.finish({"id": "a", **OK}, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limits[1]))
    try:
        with pytest.raises(OSError) as raised:
            journal.finish({"id": "b", **OK}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    problem = raised.value
    assert (problem.errno, problem.strerror, problem.filename) == (errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    assert set(journal.finished) == {"a"}, "b counts as it does for who reads the file"
    journal = started(path)
    journal.finish({"id": "c", **OK}, {})
    assert set(ShardJournal.read(path).finished) == {"a", "c"}
