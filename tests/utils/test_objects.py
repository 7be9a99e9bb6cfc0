"""Object stores: create-if-absent, bounded retries, and objects that change or end early."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from openavs.errors import InputError, StoreError
from openavs.utils import objects
from openavs.utils.objects import RETRIES, ObjectStore, is_object_name, is_object_url


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that requests waited, instead of waiting."""
    waited: list[float] = []
    monkeypatch.setattr(objects.time, "sleep", waited.append)
    return waited


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    yield ObjectStore("memory://bucket/out")
    MemoryFileSystem.store.clear()


def fail(monkeypatch: pytest.MonkeyPatch, method: str, *errors: Exception) -> list[Exception]:
    """Make the next requests of a kind fail; returns those that are left to fail."""
    left, real = list(errors), getattr(MemoryFileSystem, method)

    @wraps(real)
    def request(self: MemoryFileSystem, *args: Any, **options: Any) -> Any:
        if left:
            raise left.pop(0)
        return real(self, *args, **options)

    monkeypatch.setattr(MemoryFileSystem, method, request)
    return left


def test_objects_are_written_read_listed_and_removed(store: ObjectStore) -> None:
    store.put({"a/x": b"12", "a/b/y": b"", "z": b"3"})
    ObjectStore("memory://bucket/out2").put({"q": b""})
    assert {name: info["size"] for name, info in store.find().items()} == {"a/b/y": 0, "a/x": 2, "z": 1}
    assert list(store.find("a")) == ["a/b/y", "a/x"]
    assert store.find("nothing") == {}
    assert store.tops() == {"a", "z"}
    assert (store.get("a/x"), store.read("a/x", 1, 5), store.size("a/x")) == (b"12", b"2", 2)
    assert store.get_all(["z", "absent", "a/x"]) == {"z": b"3", "a/x": b"12"}
    store.remove(["a/x", "absent"])
    with pytest.raises(FileNotFoundError):
        store.get("a/x")
    with pytest.raises(FileNotFoundError):
        store.size("a")


def test_an_object_is_created_once(store: ObjectStore) -> None:
    assert store.create("x", b"1")
    assert not store.create("x", b"2")
    assert store.get("x") == b"1"


def test_a_lost_answer_does_not_hide_that_the_object_was_created(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MemoryFileSystem.pipe_file
    answers = iter([ConnectionError("reset")] * 2)

    @wraps(real)
    def lossy(self: MemoryFileSystem, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        for error in answers:
            raise error

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lossy)
    assert store.create("x", b"mine")
    answers = iter([ConnectionError("reset")])
    assert not store.create("x", b"another's"), "an object that was there before is not taken for one's own"


def test_requests_are_repeated_a_few_times(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    store.put({"x": b"1"})
    fail(monkeypatch, "cat_file", OSError("slow down"), TimeoutError())
    assert store.get("x") == b"1"
    assert waits == list(RETRIES[:2])


def test_a_store_that_stays_away_is_one_sentence_and_then_fails_at_once(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    left = fail(monkeypatch, "cat_file", *[OSError("unplugged")] * 20)
    with pytest.raises(StoreError, match=r"memory://bucket/out/x could not be reached in 6 attempts .*unplugged"):
        store.get("x")
    assert (len(left), waits) == (14, list(RETRIES))
    with pytest.raises(StoreError):
        store.get("x")
    assert len(left) == 13


def test_refusals_are_not_repeated(store: ObjectStore, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    class NoCredentialsError(Exception):
        pass

    fail(monkeypatch, "cat_file", PermissionError("AccessDenied"), NoCredentialsError("unable to locate credentials"))
    with pytest.raises(InputError, match=r"is refused by the store .*AccessDenied.*; check the credentials"):
        store.get("x")
    with pytest.raises(InputError, match="there are no credentials for memory://bucket/out/x"):
        store.get("x")
    assert waits == []


def test_a_bucket_that_does_not_exist_is_named(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, "pipe_file", FileNotFoundError("NoSuchBucket"), FileNotFoundError("NoSuchBucket"))
    with pytest.raises(InputError, match="there is no such bucket"):
        store.check_create()
    with pytest.raises(StoreError, match="its bucket does not exist"):
        store.put({"x": b""})


def test_a_store_that_can_create_leaves_nothing_behind(store: ObjectStore) -> None:
    store.check_create()
    assert store.find() == {}


def looks_first(self: MemoryFileSystem, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
    self.open(path, "wb", data=value)


@pytest.mark.parametrize("pipe_file", [AbstractFileSystem.pipe_file, looks_first])
def test_a_store_without_create_if_absent_is_refused(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, pipe_file: Any
) -> None:
    """Fsspec's own way looks whether the object exists, and then writes; other servers ignore the condition."""
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    with pytest.raises(InputError, match="has no create-if-absent that openavs can use"):
        store.check_create()


def test_large_objects_are_copied_block_by_block(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(objects, "BLOCK", 4)
    store.put({"x": b"0123456789"})
    store.download("x", tmp_path / "deep/x")
    assert (tmp_path / "deep/x").read_bytes() == b"0123456789"
    store.download("x", tmp_path / "part", 3, 5)
    assert (tmp_path / "part").read_bytes() == b"34567"
    with pytest.raises(InputError, match="x is cut short: it ends at byte 10"):
        store.download("x", tmp_path / "part", 3, 9)
    with pytest.raises(FileNotFoundError):
        store.download("y", tmp_path / "y")


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(objects, "BLOCK", 4)
    store.put({"x": b"0123456789"})
    real = store.read

    def read(name: str, offset: int, size: int) -> bytes:
        if offset == 4:
            store.put({"x": b"abcdefghij"})
        return real(name, offset, size)

    monkeypatch.setattr(store, "read", read)
    with pytest.raises(StoreError, match="was replaced while it was read"):
        store.download("x", tmp_path / "x")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://bucket/x", r'pip install "openavs\[s3\]"'),
        ("nonsense://bucket/x", "is not an address that fsspec knows"),
        ("zip://x::file:///etc/passwd", "is a chain of addresses; give the address of one object store"),
        ("reference://x", r"cannot be opened \(TypeError"),
        ("memory://", "names no bucket; write it as memory://BUCKET/FOLDER"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(url: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=sentence):
        ObjectStore(url)


def test_addresses_and_names_are_distinguished_from_paths() -> None:
    assert all(map(is_object_url, ("s3://b/x", "gs://b", "memory://b")))
    assert not any(map(is_object_url, ("/x", "x", "C://x", "s3:/b", "https://b/x", "file:///x", "a/s3://b")))
    assert all(map(is_object_name, ("a", "a/b.mp4", "a b/#1.mp4")))
    assert not any(map(is_object_name, ("/a", "../a", "a/../b", "a//b", "a/", "a/./b", "a\0b", "")))
