"""The stage cache's store: concurrent writers, damage, limits, full disks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from openavs.caching.store import DEFAULT_LIMIT, StageCache, _entry_path, cache_place, size_to_bytes, size_to_text
from openavs.errors import InputError, StoreError
from openavs.utils.objects import ObjectStore


def key_of(text: object) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()


def files_of(cache: StageCache) -> list[Path]:
    return [Path(cache.place) / entry.path for entry in cache.entries()]


def file_of(cache: StageCache) -> Path:
    """The file of the one entry there is."""
    (path,) = files_of(cache)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> StageCache:
    return StageCache(tmp_path / "stages")


# ----------------------------------------------------------------------------------------------------- put and get


def test_an_entry_is_read_by_stage_and_key(cache: StageCache) -> None:
    cache.put("captioner", key_of(1), b"a dog\nbarks")
    assert cache.get("captioner", key_of(1)) == b"a dog\nbarks"
    assert cache.get("translator", key_of(1)) is None
    assert cache.get("captioner", key_of(2)) is None
    assert cache.counts == {("captioner", "hits"): 1, ("captioner", "misses"): 1, ("translator", "misses"): 1}


def test_the_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAVS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_place() == tmp_path / "openavs" / "stages"
    monkeypatch.setenv("OPENAVS_CACHE", str(tmp_path / "own"))
    assert cache_place() == tmp_path / "own" / "stages"


@pytest.mark.faults
@pytest.mark.parametrize(("stage", "number"), [("captioner", 2), ("translator", 1)])
def test_an_entry_under_another_key_is_rejected(cache: StageCache, stage: str, number: int) -> None:
    cache.put("captioner", key_of(1), b"a dog barks")
    entry = file_of(cache).read_bytes()
    cache.put(stage, key_of(number), b"a bell rings")
    (other,) = [path for path in files_of(cache) if path.read_bytes() != entry]
    other.write_bytes(entry)
    assert cache.get(stage, key_of(number)) is None
    assert not other.exists()
    assert cache.get("captioner", key_of(1)) == b"a dog barks"


@pytest.mark.faults
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-3],
        lambda data: data.replace(b"dog", b"cat"),
        lambda data: b"",
        lambda data: os.urandom(200),
        lambda data: data + b"more",
    ],
    ids=["cut", "altered", "empty", "random", "longer"],
)
def test_a_damaged_entry_is_rejected_and_removed(cache: StageCache, damage, caplog: pytest.LogCaptureFixture) -> None:
    cache.put("captioner", key_of(1), b"a dog barks")
    path = file_of(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("captioner", key_of(1)) is None
    assert not path.exists()
    assert "damaged" in caplog.text


WRITER = """
import sys
from pathlib import Path
from openavs.caching.store import StageCache
from tests.caching.test_store import key_of

cache = StageCache(Path(sys.argv[1]))
for i in range(300):
    found = cache.get("captioner", key_of(i))
    assert found in (None, b"x" * i), i
    cache.put("captioner", key_of(i), b"x" * i)
    if i % 50 == 0:
        cache.prune(400_000)
"""


def test_many_processes_read_write_and_prune_at_once(cache: StageCache) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", WRITER, str(cache.place)]) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    for i in range(299, 200, -1):
        assert cache.get("captioner", key_of(i)) in (None, b"x" * i)
    assert cache.get("captioner", key_of(299)) == b"x" * 299
    assert not list(Path(cache.place).rglob("*.tmp"))


# ---------------------------------------------------------------------------------------------------------- limits


def test_pruning_removes_what_was_used_longest_ago(cache: StageCache) -> None:
    for i in range(5):
        cache.put("captioner", key_of(i), b"x")
        os.utime(Path(cache.place) / _entry_path("captioner", key_of(i)), (1000.0 + i, 1000.0 + i))
    assert cache.get("captioner", key_of(0)) == b"x"  # used again: now the youngest
    assert len(cache.prune(3 * 4096)) == 2
    assert [cache.get("captioner", key_of(i)) is not None for i in range(5)] == [True, False, False, True, True]
    assert len(cache.prune(0)) == 3
    assert list(cache.entries()) == []


def test_puts_keep_the_cache_near_its_limit(cache: StageCache) -> None:
    cache.set_limit(10_000_000)
    for i in range(4000):
        cache.put("detector", key_of(i), bytes(8000))  # 33 MB in all
    assert 5_000_000 < sum(entry.size for entry in cache.entries()) < 11_000_000
    assert cache.get("detector", key_of(3999)) is not None


def test_an_entry_too_large_for_the_limit_is_not_stored(cache: StageCache) -> None:
    cache.set_limit(10_000_000)
    cache.put("detector", key_of(1), bytes(100_000))
    assert list(cache.entries()) == []


def test_the_limit_belongs_to_the_folder(cache: StageCache) -> None:
    assert StageCache(cache.place).limit == DEFAULT_LIMIT
    cache.set_limit(20_000_000)
    assert StageCache(cache.place).limit == 20_000_000
    with pytest.raises(InputError, match="at least 10 MB"):
        cache.set_limit(5)
    (Path(cache.place) / "limit").write_text("plenty")
    with pytest.raises(InputError, match="remove it and set the limit again"):
        StageCache(cache.place)


def test_only_its_own_files_are_removed(cache: StageCache) -> None:
    cache.put("captioner", key_of(1), b"x")
    folder = file_of(cache).parent
    (folder / "thesis.txt").write_text("mine")
    old, new = folder / ".killed.tmp", folder / ".at-work.tmp"
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert len(cache.prune(0)) == 1
    assert sorted(path.name for path in folder.iterdir()) == [".at-work.tmp", "thesis.txt"]


# -------------------------------------------------------------------------------------------------- object stores


@pytest.fixture
def shared() -> Iterator[StageCache]:
    """A cache on an object store, in memory."""
    yield StageCache("memory://bucket/stages")
    MemoryFileSystem.store.clear()


def test_a_cache_on_an_object_store_is_shared_by_its_address(
    shared: StageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.put("captioner", key_of(1), b"a dog\nbarks")
    monkeypatch.setenv("OPENAVS_CACHE", "memory://bucket")
    other = StageCache()
    assert other.get("captioner", key_of(1)) == b"a dog\nbarks"
    assert other.has("captioner", key_of(1))
    assert not other.has("captioner", key_of(2))
    assert other.get("captioner", key_of(2)) is None
    other.discard("captioner", key_of(1))
    assert shared.get("captioner", key_of(1)) is None


def test_a_damaged_object_is_rejected_and_removed(shared: StageCache, caplog: pytest.LogCaptureFixture) -> None:
    shared.put("captioner", key_of(1), b"a dog barks")
    (entry,) = shared.entries()
    ObjectStore(str(shared.place)).put({entry.path.as_posix(): b"half"})
    assert shared.get("captioner", key_of(1)) is None
    assert list(shared.entries()) == []
    assert "damaged" in caplog.text


def test_only_objects_of_the_cache_are_removed(shared: StageCache) -> None:
    store, name = ObjectStore("memory://bucket"), f"captioner-{key_of(1)[2:]}"
    store.put({f"stages/{name}": b"mine", f"stages/other/v3/ab/{name}": b"mine"})
    shared.put("captioner", key_of(2), b"x")
    assert len(shared.prune(0)) == 1
    assert set(store.find()) == {f"stages/{name}", f"stages/other/v3/ab/{name}"}


def test_objects_are_pruned_the_oldest_first_and_have_no_limit(shared: StageCache) -> None:
    for i in range(3):
        shared.put("captioner", key_of(i), bytes(1000))
        time.sleep(0.01)
    size = next(shared.entries()).size
    assert shared.limit is None
    assert len(shared.prune(2 * size)) == 1
    assert [shared.has("captioner", key_of(i)) for i in range(3)] == [False, True, True]
    with pytest.raises(InputError, match="lifecycle rule"):
        shared.set_limit(10_000_000)


def test_a_store_that_fails_is_one_warning_and_no_further_request(
    shared: StageCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def fail(self: ObjectStore, name: str) -> bytes:
        calls.append(name)
        raise StoreError("memory://bucket/cache could not be reached")

    monkeypatch.setattr(ObjectStore, "get", fail)
    for i in range(3):
        assert shared.get("captioner", key_of(i)) is None
        shared.put("captioner", key_of(i), b"x")
    assert len(calls) == 1
    assert caplog.text.count("cannot be used") == 1


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("1.5T", 15 * 10**11), ("12", 12), ("3kB", 3000)]
)
def test_sizes_are_read_and_written(text: str, size: int) -> None:
    assert size_to_bytes(text) == size
    assert size_to_bytes(size_to_text(size)) == size


@pytest.mark.parametrize("text", ["", "much", "-5GB", "5GiB", "1e9", "GB"])
def test_malformed_sizes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="5GB or 500MB"):
        size_to_bytes(text)


# ------------------------------------------------------------------------------------------------- disks that refuse


def test_a_folder_that_cannot_be_used_is_one_warning_and_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = StageCache(tmp_path / "file" / "stages")
    for i in range(3):
        cache.put("captioner", key_of(i), b"x")
        assert cache.get("captioner", key_of(i)) is None
    assert caplog.text.count("cannot be used") == 1


FULL = """
import resource, signal, sys
from pathlib import Path
from openavs.caching.store import StageCache
from tests.caching.test_store import key_of

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
cache = StageCache(Path(sys.argv[1]))
cache.put("captioner", key_of(1), bytes(5000))
assert cache.get("captioner", key_of(1)) is None
cache.put("captioner", key_of(2), bytes(500))
assert cache.get("captioner", key_of(2)) == bytes(500)
"""


@pytest.mark.faults
@pytest.mark.skipif(os.name == "nt", reason="needs resource limits")
def test_a_full_disk_leaves_nothing_half_written(cache: StageCache) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(cache.place)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot be used" in done.stderr
    assert len(list(Path(cache.place).rglob("*-*"))) == 1
    assert not list(Path(cache.place).rglob("*.tmp"))
