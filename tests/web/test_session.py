"""Files of a session: private, kept while in use, and removed with the session."""

from __future__ import annotations

from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.media import probe
from openavs.web.session import PREFIX, SessionStore, remove_old_files, server_tempdir, write_example


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
    one.begin([given])
    kept = one.link_input(given)
    given.unlink()
    assert (kept.name, kept.read_bytes()) == ("a.mp4", b"video")
    two = sessions.get("two")
    two.begin([given])
    with pytest.raises(InputError, match=r"^a.mp4 has been removed from the server; upload it again$"):
        two.link_input(given)


def test_two_uploads_of_one_name_stay_separate(sessions: SessionStore, tmp_path: Path) -> None:
    one, first, second = sessions.get("one"), upload(tmp_path / "1"), upload(tmp_path / "2")
    second.write_bytes(b"sound")
    one.begin([first, second])
    assert [one.link_input(path).read_bytes() for path in (first, second)] == [b"video", b"sound"]


def test_a_stop_ends_only_its_own_run(sessions: SessionStore) -> None:
    one = sessions.get("one")
    one.begin([])
    earlier = one.stop
    earlier.set()
    one.begin([])
    assert earlier.is_set()
    assert not one.stop.is_set()


def test_the_end_of_a_session_removes_its_files_only(sessions: SessionStore, tmp_path: Path) -> None:
    shared, own = upload(tmp_path / "uploads"), upload(tmp_path / "uploads", "b.mp4")
    one, two = sessions.get("one"), sessions.get("two")
    one.begin([shared, own])
    two.begin([shared])
    sessions.end("one")
    assert not one.folder.exists()
    assert not own.exists()
    assert shared.exists()
    sessions.end("two")
    assert not shared.exists()
    assert len(sessions) == 0
    sessions.end("never was")


def test_an_active_session_is_removed_when_its_run_ends(sessions: SessionStore) -> None:
    with sessions.active("one") as one:
        sessions.end("one")
        assert one.folder.exists()
        assert one.stop.is_set()
    assert not one.folder.exists()


def test_a_file_that_is_given_twice_is_linked_once(sessions: SessionStore, tmp_path: Path) -> None:
    one, given = sessions.get("one"), upload(tmp_path / "uploads")
    one.begin([given])
    assert one.link_input(given) == one.link_input(given)  # a video that is also its audio


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
