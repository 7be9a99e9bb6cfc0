"""The files of a visit: in a folder of its own, out of others' reach, and gone when the visit is over."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.web.folders import PREFIX, remove_old, server_folder
from openavs.web.sessions import SessionStore


class Clock:
    """A time that only moves when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(tmp_path: Path, clock: Clock) -> SessionStore:
    return SessionStore(tmp_path / "visits", keep=60.0, clock=clock)


def upload(folder: Path, name: str = "a.mp4") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(b"video")
    return path


def test_a_visit_keeps_its_folder_and_others_have_their_own(sessions: SessionStore) -> None:
    one = sessions.get("one")
    assert sessions.get("one") is one
    assert sessions.get("two").folder != one.folder
    assert sessions.get(None) is not sessions.get(None)
    assert sessions.by_token(one.token) is one
    assert sessions.by_token("guessed") is None
    assert sessions.by_token("gu\u00e9ssed") is None
    assert len(one.token) >= 32


def test_only_its_own_files_are_given(sessions: SessionStore, tmp_path: Path) -> None:
    one = sessions.get("one")
    (one.folder / "masks.zip").write_bytes(b"x")
    (one.folder / ".masks.zip.part").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"x")
    (one.folder / "link").symlink_to(tmp_path / "secret")
    assert one.file("masks.zip") == one.folder / "masks.zip"
    for name in ("../../secret", "link", ".masks.zip.part", "given", "absent", ".."):
        assert one.file(name) is None


def test_a_run_has_links_of_its_own_to_what_was_uploaded(sessions: SessionStore, tmp_path: Path) -> None:
    one, given = sessions.get("one"), upload(tmp_path / "uploads")
    one.begin([given])
    kept = one.keep(given)
    given.unlink()
    assert (kept.name, kept.read_bytes()) == ("a.mp4", b"video")
    two = sessions.get("two")
    two.begin([given])
    with pytest.raises(InputError, match=r"^a.mp4 is no longer here; upload it again$"):
        two.keep(given)


def test_two_uploads_of_one_name_stay_two(sessions: SessionStore, tmp_path: Path) -> None:
    one, first, second = sessions.get("one"), upload(tmp_path / "1"), upload(tmp_path / "2")
    second.write_bytes(b"sound")
    one.begin([first, second])
    assert [one.keep(path).read_bytes() for path in (first, second)] == [b"video", b"sound"]


def test_a_stop_is_for_its_own_run(sessions: SessionStore) -> None:
    one = sessions.get("one")
    one.begin([])
    earlier = one.stopping
    earlier.set()
    one.begin([])
    assert earlier.is_set()
    assert not one.stopping.is_set()


def test_leaving_removes_the_visits_files_but_not_what_another_uses(sessions: SessionStore, tmp_path: Path) -> None:
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


def test_a_visit_at_work_is_removed_when_that_is_done(sessions: SessionStore) -> None:
    one = sessions.get("one")
    sessions.working(one, +1)
    sessions.end("one")
    assert one.folder.exists()
    assert one.stopping.is_set()  # nobody waits for it
    sessions.working(one, -1)
    assert not one.folder.exists()


def test_a_visit_that_ends_just_before_its_work_begins_leaves_nothing(sessions: SessionStore, tmp_path: Path) -> None:
    one, own = sessions.get("one"), upload(tmp_path / "uploads")
    sessions.end("one")
    sessions.working(one, +1)  # its work was on the way
    one.begin([own])
    one.keep(own)
    sessions.working(one, -1)
    assert not one.folder.exists()
    assert not own.exists()


def test_a_file_that_is_given_twice_is_kept_once(sessions: SessionStore, tmp_path: Path) -> None:
    one, given = sessions.get("one"), upload(tmp_path / "uploads")
    one.begin([given])
    assert one.keep(given) == one.keep(given)  # a video that is its own sound, too


def test_visits_that_nobody_came_back_to_go(sessions: SessionStore, clock: Clock) -> None:
    one, two = sessions.get("one"), sessions.get("two")
    clock.now = 40
    sessions.get("two")
    clock.now = 70
    sessions.expire()
    assert not one.folder.exists()
    assert two.folder.exists()
    sessions.working(two, +1)
    clock.now = 1000
    sessions.expire()
    assert two.folder.exists()  # at work


def test_old_uploads_go_and_new_ones_stay(tmp_path: Path) -> None:
    old, new = upload(tmp_path / "old"), upload(tmp_path / "new")
    os.utime(old, (time.time() - 100,) * 2)
    remove_old(tmp_path, 50)
    assert not old.parent.exists()
    assert new.exists()


def test_the_servers_folder_goes_with_it_and_that_of_a_killed_one_at_the_next_start(tmp_path: Path) -> None:
    killed = tmp_path / f"{PREFIX}killed"
    killed.mkdir()
    (killed / "lock").touch()
    other = tmp_path / "mine"
    other.mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(other)  # not ours, whoever made it
    with server_folder(tmp_path) as first:
        assert not killed.exists()
        assert first.stat().st_mode & 0o077 == 0  # private
        with server_folder(tmp_path):
            assert first.exists()  # it is in use
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / f"{PREFIX}link"]
