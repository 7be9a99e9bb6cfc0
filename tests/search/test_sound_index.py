"""The file of an index: what is read again, what is left out, and who may write it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.results.serialization import write_result
from openavs.search.query import SoundIndex
from openavs.search.sound_index import lock_byte, update_index
from tests.search.conftest import ROOM, STREET, YARD, Sound, result_of, write_run


def age(run: Path, seconds: float = 10.0) -> None:
    """Make the results of a run older, so that their times are reliable."""
    for path in run.glob("clips/*/result.json"):
        old = path.stat().st_mtime - seconds
        os.utime(path, (old, old))


def found(path: Path, query: str) -> list[tuple[str, float, float]]:
    with SoundIndex(path) as index:
        return [(hit.clip, hit.start, hit.end) for hit in index.find(query).hits]


def test_a_second_call_reads_what_is_new_or_changed_and_removes_what_is_gone(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "sounds.db"
    assert vars(update_index(path, [home]))["new"] == 2
    write_result(home, result_of("room", Sound("Rooster", "rooster", 2, 3)))
    shutil.rmtree(home / "clips" / "yard")
    write_run(home, street=STREET)
    summary = update_index(path)
    assert (summary.clips, summary.new, summary.changed, summary.removed) == (2, 1, 1, 1)
    assert found(path, "rooster") == [("room", 2.0, 3.0)]
    assert found(path, "music") == found(path, "door") == []
    with SoundIndex(path) as index:
        assert index.count("texts") == 5  # those of the removed spans are gone as well


def test_an_index_without_changes_is_the_same_file(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "sounds.db"
    age(home)
    update_index(path, [home])
    before = path.stat()
    summary = update_index(path)
    assert (summary.clips, summary.new, summary.changed) == (2, 0, 0)
    assert os.path.samestat(path.stat(), before) and path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_result_of_the_same_size_and_time_is_read_if_it_is_young(home: Path, tmp_path: Path) -> None:
    path, result = tmp_path / "sounds.db", home / "clips" / "yard" / "result.json"
    update_index(path, [home])
    stat = result.stat()
    result.write_bytes(result.read_bytes().replace(b"Door", b"Bell"))
    os.utime(result, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert update_index(path).changed == 1 and found(path, "bell") == [("yard", 3.0, 5.0)]


def test_runs_are_added_and_leave_with_their_folder(index: Path, tmp_path: Path) -> None:
    assert len(found(index, "siren")) == 1
    shutil.rmtree(tmp_path / "town")
    summary = update_index(index)
    assert summary.removed == 1 and "town is gone, and its 1 clip are removed" in summary.notes[0]
    assert found(index, "siren") == [] and len(found(index, "dog")) == 2


def test_a_run_that_is_being_written_gives_its_completed_clips(home: Path, tmp_path: Path) -> None:
    (home / "manifest.jsonl").write_text("{}\n" * 5)
    (home / "run.json").write_text('{"failed": 1}')
    (home / "clips" / ".third.part").mkdir()
    (home / "clips" / "fourth").mkdir()
    summary = update_index(tmp_path / "sounds.db", [home])
    assert summary.clips == 2 and summary.missing == {str(home): 2}
    assert "2 clips of" in summary.notes[0] and "have no result yet" in summary.notes[0]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 1, "frames": [{}]}', "[" * 100_000, "\xff"])
def test_a_damaged_result_is_named_and_its_earlier_spans_stay(home: Path, tmp_path: Path, text: str) -> None:
    path, result = tmp_path / "sounds.db", home / "clips" / "yard" / "result.json"
    update_index(path, [home])
    result.write_text(text, "latin-1")
    summary = update_index(path)
    assert list(summary.broken) == [str(result)] and summary.clips == 2
    assert len(summary.notes) == 1 and str(result) in summary.notes[0]
    assert found(path, "door") == [("yard", 3.0, 5.0)]


def test_texts_that_are_not_valid_unicode_are_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", clip=[Sound("dog \udcff", "dog", 0, 1)])
    update_index(tmp_path / "sounds.db", [run])
    assert found(tmp_path / "sounds.db", "dog") == [("clip", 0.0, 1.0)]


def test_another_writer_is_refused(index: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from openavs.jobs.locks import claim\n"
        "print(claim(Path(sys.argv[1]), int(sys.argv[2])), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(index.parent), str(lock_byte(index))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "True\n"
        with pytest.raises(InputError, match="another 'openavs index' is writing"):
            update_index(index)
        other.communicate()
    assert update_index(index).clips == 3


def test_a_failure_leaves_the_old_index(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    before = index.read_bytes()
    monkeypatch.setattr("openavs.search.sound_index.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        update_index(index, [write_run(tmp_path / "more", yard=YARD)])
    assert index.read_bytes() == before and not list(tmp_path.glob(".*.part"))


def test_wrong_files_and_folders_are_refused(index: Path, home: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no results"):
        update_index(index, [tmp_path])
    with pytest.raises(InputError, match="does not exist; give the result folders"):
        update_index(tmp_path / "other.db")
    (tmp_path / "text.db").write_text("text")
    with pytest.raises(InputError, match=r"text\.db is not an index of openavs"):
        update_index(tmp_path / "text.db", [home])
    with sqlite3.connect(index) as db:
        db.execute("PRAGMA user_version = 7")
    with pytest.raises(InputError, match="written by another version of openavs"):
        update_index(index)


def test_a_damaged_index_is_one_sentence(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:6000])
    with pytest.raises(InputError, match="cannot be read or written"):
        update_index(index)
    with pytest.raises(InputError, match="cannot be read or written"):
        found(index, "dog")


def test_the_order_of_the_runs_does_not_matter(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", yard=YARD), write_run(tmp_path / "b", room=ROOM)]
    update_index(tmp_path / "1.db", runs)
    update_index(tmp_path / "2.db", runs[::-1])
    assert found(tmp_path / "1.db", "dog") == found(tmp_path / "2.db", "dog")
