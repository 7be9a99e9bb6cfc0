"""Label jobs on Google Cloud Storage: an emulator in a process of its own, and `openavs label` killed and doubled.

`make test-packages` installs gcsfs and gcp-storage-emulator (`gcs.txt`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from openavs.utils.objects import ObjectStore
from tests.jobs.pool import finished, label, tree, videos
from tests.jobs.stores import fetch, gcs_server, upload

pytest.importorskip("gcsfs", reason="gcsfs is not installed; make test-packages installs it")
pytest.importorskip("gcp_storage_emulator", reason="the emulator is not installed; make test-packages installs it")

BUCKET = "gs://openavs"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """The emulator, of which the environment speaks."""
    with gcs_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def pool(server: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips, one of which is not a video; they are on the store, too."""
    folder = videos(tmp_path_factory.mktemp("pool") / "videos", 6, seconds=1)
    (folder / "v05.mp4").write_bytes(b"no video")
    upload(folder, f"{BUCKET}/clips")
    return folder


@pytest.fixture(scope="module")
def whole(pool: Path, slow: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tree of a local job."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert finished(label(*words(slow, out, pool))).json()["ok"] == 5
    return tree(out)


def words(made: Path, out: str | Path, source: str | Path = f"{BUCKET}/clips") -> tuple[str | Path, ...]:
    return (source, "--pipeline", made, "--shard-size", "3", "--workers", "1", "--json", "--out", out)


def test_the_store_creates_an_object_once() -> None:
    store = ObjectStore(f"{BUCKET}/created")
    store.check_create()
    won: list[int] = []
    threads = [threading.Thread(target=lambda n=n: won.extend([n] * store.create("y", b"%d" % n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b"%d" % n for n in won] == [store.get("y")]
    store.put({"a/b": b"1", "c": b"2"})
    assert set(store.find()) == {"a/b", "c", "y"}
    assert (store.tops(), store.size("c"), store.read("y", 0, 10)) == ({"a", "c", "y"}, 1, store.get("y"))
    store.remove(["c", "absent"])
    assert store.get_all(["a/b", "c"]) == {"a/b": b"1"}


def test_a_kill_in_the_middle_does_not_show_in_the_results(slow: Path, whole: dict[str, str], tmp_path: Path) -> None:
    url = f"{BUCKET}/killed"
    process = label(*words(slow, url))
    deadline = time.monotonic() + 120
    while not any(name.endswith("result.json") for name in ObjectStore(url).find("clips")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    last = finished(label(*words(slow, url)))
    assert (last.code, last.json()["ok"]) == (1, 5), last.err
    assert tree(fetch(url, tmp_path / "got")) == whole


def test_two_jobs_on_one_address_share_the_work(slow: Path, whole: dict[str, str], tmp_path: Path) -> None:
    url = f"{BUCKET}/shared"
    answers = [finished(job) for job in [label(*words(slow, url)) for _ in range(2)]]
    assert [answer.code for answer in answers] == [1, 1], [answer.err for answer in answers]
    assert sum(answer.json()["worked"] for answer in answers) == 6, "no clip was done twice"
    assert tree(fetch(url, tmp_path / "got")) == whole
