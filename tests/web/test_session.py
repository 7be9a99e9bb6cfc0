"""Files of a session: private, kept while in use, and removed with the session."""

from __future__ import annotations

from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.media.clip import probe
from openavs.web import SegmentRequest
from openavs.web.session import MAX_RUNS, PREFIX, SessionStore, remove_old_files, server_tempdir, write_example


class Clock:
    """A clock that is set by the test."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(tmp_path: Path, clock: Clock) -> SessionStore:
    return SessionStore(tmp_path / "sessions", keep_seconds=60.0, clock=clock)


def upload(folder: Path, name: str = "a.mp4") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(b"video")
    return path


def test_each_session_has_its_own_folder(sessions: SessionStore) -> None:
    one = sessions.get("one")
    assert sessions.get("one") is one
    assert sessions.get("two").folder != one.folder
    assert sessions.get(None) is not sessions.get(None)
    assert len(one.folder.name) >= 32  # cannot be guessed


def test_a_run_has_links_to_its_uploads(sessions: SessionStore, tmp_path: Path) -> None:
    one, given = sessions.get("one"), upload(tmp_path / "uploads")
    kept = one.begin(SegmentRequest(given)).request.source
    given.unlink()
    assert (kept.name, kept.read_bytes()) == ("a.mp4", b"video")
    with pytest.raises(InputError, match=r"^a.mp4 has been removed from the server; upload it again$"):
        sessions.get("two").begin(SegmentRequest(given))


def test_two_uploads_of_one_name_stay_separate(sessions: SessionStore, tmp_path: Path) -> None:
    first, second = upload(tmp_path / "1"), upload(tmp_path / "2")
    second.write_bytes(b"sound")
    request = sessions.get("one").begin(SegmentRequest(first, second)).request
    assert request.audio is not None
    assert [path.read_bytes() for path in (request.source, request.audio)] == [b"video", b"sound"]


def test_a_stop_ends_only_the_runs_so_far(sessions: SessionStore, tmp_path: Path) -> None:
    one, request = sessions.get("one"), SegmentRequest(upload(tmp_path / "1"))
    earlier = one.begin(request)
    one.stop()
    later = one.begin(request)
    assert earlier.stop.is_set() and not later.stop.is_set()


def test_the_last_results_of_a_session_are_kept_one_for_each_request(sessions: SessionStore, tmp_path: Path) -> None:
    one = sessions.get("one")
    for number in range(MAX_RUNS + 2):
        one.finish(one.begin(SegmentRequest(upload(tmp_path / str(number)))), ())
    assert [run.number for run in one.runs] == list(range(3, MAX_RUNS + 3))
    assert sorted(path.name for path in one.folder.iterdir()) == sorted(str(run.number) for run in one.runs)
    shown = one.show(4)
    assert one.shown is shown
    with pytest.raises(InputError, match=r"^the result has been removed; run the clip again$"):
        one.show(2)
    again = one.begin(SegmentRequest(shown.request.source, threshold=0.3))
    one.finish(again, ())
    assert shown not in one.runs and one.shown is again  # it replaces that with another threshold
    one.finish(one.begin(SegmentRequest(again.request.source, add=("dog",))), ())
    assert again in one.runs


def test_the_end_of_a_session_removes_its_files_only(sessions: SessionStore, tmp_path: Path) -> None:
    shared, own = upload(tmp_path / "uploads"), upload(tmp_path / "uploads", "b.mp4")
    one, two = sessions.get("one"), sessions.get("two")
    one.begin(SegmentRequest(shared, own))
    two.begin(SegmentRequest(shared))
    sessions.end("one")
    assert not one.folder.exists()
    assert not own.exists()
    assert shared.exists()
    sessions.end("two")
    assert not shared.exists()
    assert len(sessions) == 0
    sessions.end("never was")


def test_a_reloaded_page_finds_its_session_again(tmp_path: Path, clock: Clock) -> None:
    sessions = SessionStore(tmp_path / "sessions", 60.0, reload_seconds=10.0, clock=clock)
    one = sessions.get("one")
    run = one.begin(SegmentRequest(upload(tmp_path / "uploads")))
    sessions.end("one")
    clock.now = 9
    assert sessions.resume(one.folder.name, "two") is one
    assert run.stop.is_set() and run.folder.exists()
    clock.now = 15
    sessions.expire()
    assert sessions.get("two") is one
    for token in ("", "ä", "../one"):
        assert sessions.resume(token, "three") is None
    sessions.end("two")
    clock.now = 26
    sessions.expire()
    assert sessions.resume(one.folder.name, "three") is None and not one.folder.exists()


def test_an_active_session_is_removed_when_its_run_ends(sessions: SessionStore) -> None:
    with sessions.active("one") as one:
        sessions.end("one")
        assert one.folder.exists()
    assert not one.folder.exists()


def test_a_file_that_is_given_twice_is_linked_once(sessions: SessionStore, tmp_path: Path) -> None:
    given = upload(tmp_path / "uploads")
    request = sessions.get("one").begin(SegmentRequest(given, given)).request  # a video that is also its audio
    assert request.source == request.audio


def test_idle_sessions_expire(sessions: SessionStore, clock: Clock) -> None:
    one, two = sessions.get("one"), sessions.get("two")
    clock.now = 40
    sessions.get("two")
    clock.now = 70
    sessions.expire()
    assert not one.folder.exists()
    assert two.folder.exists()
    with sessions.active("two"):
        clock.now = 1000
        sessions.expire()
        assert two.folder.exists()


def test_old_files_and_empty_folders_are_removed(tmp_path: Path) -> None:
    upload(tmp_path / "hash")
    remove_old_files(tmp_path, 50)
    assert (tmp_path / "hash" / "a.mp4").exists()
    remove_old_files(tmp_path, -1)
    assert not list(tmp_path.iterdir()) or not list((tmp_path / "hash").iterdir())  # the folder has just changed
    remove_old_files(tmp_path, -1)
    assert not list(tmp_path.iterdir())


def test_the_example_is_a_video(tmp_path: Path) -> None:
    assert probe(write_example(tmp_path)).duration == pytest.approx(6, abs=0.2)


def test_server_tempdir_is_removed_on_exit_and_after_a_kill(tmp_path: Path) -> None:
    killed = tmp_path / f"{PREFIX}killed"
    killed.mkdir()
    (killed / "lock").touch()
    other = tmp_path / "mine"
    other.mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(other)  # not created by openavs
    with server_tempdir(tmp_path) as first:
        assert not killed.exists()
        assert first.stat().st_mode & 0o077 == 0  # private
        with server_tempdir(tmp_path):
            assert first.exists()  # in use
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / f"{PREFIX}link"]
