"""Completion files: their content, retries of failed clips, and files that are not of this manifest."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError
from openavs.jobs.checkpoint import (
    Entry,
    ShardJournal,
    complete,
    completed,
    completion_path,
    journal_path,
    read_completion,
    reopen,
    save_timings,
    summarize,
)
from openavs.utils.fs import write_hashed
from tests.jobs.pool import disk_events

ROWS: list[dict[str, Any]] = [
    {"id": "a", "status": "ok", "reason": None, "rejected": {"not found": 2, "label_filter.min_area": 1}},
    {"id": "b", "status": "failed", "reason": "no_sound", "rejected": {}},
    {"id": "c", "status": "filtered", "reason": "drop_empty", "rejected": {"not found": 1}},
    {"id": "d", "status": "failed", "reason": "missing", "rejected": {}},
    {"id": "e", "status": "failed", "reason": "missing", "rejected": {}},
]


def entries(out: Path) -> list[Entry]:
    """The rows with a file each of those that have any."""
    files = {row["id"]: f"clips/{row['id']}/result.json" for row in ROWS if row["status"] != "failed"}
    return [
        (row, {files[row["id"]]: write_hashed(out / files[row["id"]], b"{}")} if row["id"] in files else {})
        for row in ROWS
    ]


def marked(**changes: Any) -> bytes:
    """A mark of one clip in which some keys are changed."""
    row = {"id": "a", "status": "ok", "rejected": {}}
    whole = {"format": 3, "key": "key", **summarize([row]), "rows": [row], "files": {"a": {}}}
    return json.dumps({**whole, **changes}).encode()


def test_a_mark_counts_its_clips_and_ends_the_journal(tmp_path: Path) -> None:
    journal = ShardJournal(journal_path(tmp_path, 7))
    journal.start()
    mark = complete(tmp_path, 7, "key", entries(tmp_path))
    assert mark["counts"] == {"failed": 3, "filtered": 1, "ok": 1}
    assert mark["reasons"] == {"missing": 2, "no_sound": 1}, "of failed clips alone"
    assert mark["rejected"] == {"label_filter.min_area": 1, "not found": 3}
    assert [list(mark[name]) for name in ("counts", "reasons", "rejected")] == [
        ["failed", "filtered", "ok"], ["missing", "no_sound"], ["label_filter.min_area", "not found"]
    ]  # fmt: skip
    assert (mark["rows"], mark["shard"], mark["key"], mark["format"]) == (ROWS, 7, "key", 3)
    assert set(mark["files"]) == set("abcde")
    assert set(mark["files"]["a"]) == {"clips/a/result.json"} and mark["files"]["b"] == {}
    assert read_completion(tmp_path, 7, "key") == mark
    assert not journal.path.exists()
    assert completion_path(tmp_path, 7).name == "000007.json"
    content = completion_path(tmp_path, 7).read_bytes()
    assert content.endswith(b"}\n") and b'": ' not in content, "one line without blanks"


def test_a_shard_whose_files_are_not_there_is_not_committed(tmp_path: Path) -> None:
    done = entries(tmp_path)
    (tmp_path / "clips/c/result.json").unlink()
    with pytest.raises(FileNotFoundError):
        complete(tmp_path, 0, "key", done)
    assert completed(tmp_path) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the names of open files in /proc")
def test_a_completion_file_is_renamed_after_its_files_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = entries(tmp_path)
    events = disk_events(tmp_path, monkeypatch)
    complete(tmp_path, 0, "key", done)
    files = ["clips/a/result.json", "clips/c/result.json"]
    assert events[:2] == files and set(events[2:-3]) == {"clips", "clips/a", "clips/c"}
    assert events[-3:] == ["work/shards/.tmp", "-> 000000.json", "work/shards"]


def test_a_shard_without_a_mark_is_not_committed(tmp_path: Path) -> None:
    assert read_completion(tmp_path, 0, "key") is None
    assert completed(tmp_path) == set()


def test_only_whole_marks_count_as_committed(tmp_path: Path) -> None:
    for shard in (0, 3, 1_000_000):
        complete(tmp_path, shard, "key", [])
    for stray in (".000001.json.part", "000002.jsonl", "notes.json", "x00004.json", "00000x.json"):
        (tmp_path / "work/shards" / stray).write_bytes(b"")
    assert completed(tmp_path) == {0, 3, 1_000_000}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"format": 1, "key": "k', "is damaged .*remove it"),
        (b"[1]", "belongs to another job"),
        (b'{"format": 1, "key": "other", "rows": [], "files": {}}', "belongs to another job"),
        (b'{"format": 1, "key": "key", "rows": [], "files": {}}', "belongs to another job"),
        (b'{"format": 3, "key": "key", "rows": [], "files": []}', "its rows are invalid"),
        (b'{"format": 3, "key": "key", "rows": {}, "files": {}}', "its rows are invalid"),
        (b'{"format": 3, "key": "key", "files": {}}', "its rows are invalid"),
        (b'{"format": 3, "key": "key", "rows": [{"id": "a", "status": "ok"}], "files": {}}', "its rows are invalid"),
        (b'{"format": 3, "key": "key", "rows": [], "files": {}}', "its rows are invalid"),
        (marked(files={}), "its rows are invalid"),
        (marked(files={"a": []}), "its rows are invalid"),
        (marked(files={"a": {"clips/a/result.json": 7}}), "its rows are invalid"),
        (marked(counts=3), "its rows are invalid"),
    ],
)
def test_invalid_completion_files_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = completion_path(tmp_path, 4)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as raised:
        read_completion(tmp_path, 4, "key")
    assert str(path) in str(raised.value)


def test_trying_again_keeps_all_but_the_failed_clips(tmp_path: Path) -> None:
    mark = complete(tmp_path, 2, "key", entries(tmp_path))
    timing = {"seconds": 1.25, "stages": {"detect": 0.5}}
    save_timings(tmp_path, 2, {"a": timing, "b": timing})
    old = ShardJournal(journal_path(tmp_path, 2))
    old.start()
    old.begin("left by a killed run")
    reopen(tmp_path, mark, ["b", "d", "e"])
    assert completed(tmp_path) == set()
    journal = ShardJournal.read(journal_path(tmp_path, 2))
    assert journal.finished == {row["id"]: (row, mark["files"][row["id"]]) for row in ROWS if row["id"] in "ac"}
    assert (journal.timings, journal.begun) == ({"a": timing}, set())
    journal.forget_changed(tmp_path)
    assert set(journal.finished) == {"a", "c"}


def test_a_shard_stays_committed_until_its_journal_is_whole(tmp_path: Path) -> None:
    mark = complete(tmp_path, 2, "key", entries(tmp_path))
    damaged = {**mark, "files": {"a": mark["files"]["a"]}}  # of `c` nothing is said
    with pytest.raises(KeyError):
        reopen(tmp_path, damaged, ["b", "d", "e"])
    assert read_completion(tmp_path, 2, "key") == mark


def test_a_summary_of_nothing_is_empty() -> None:
    assert summarize([]) == {"counts": {}, "reasons": {}, "rejected": {}}


def test_marks_hold_no_numbers_that_json_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        complete(tmp_path, 0, "key", [({**ROWS[0], "scores": [float("nan")]}, {})])
    assert completed(tmp_path) == set()
