"""Label jobs on S3: moto's server in a process of its own, and `openavs label` killed, doubled and cut off.

`make test-packages` installs s3fs and moto (`s3.txt`).
"""

from __future__ import annotations

import os
import random
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError, StoreError
from openavs.utils import objects
from openavs.utils.objects import ObjectStore
from tests.jobs.pool import finished, label, tree, videos
from tests.jobs.stores import fetch, s3_server, upload

s3fs: Any = pytest.importorskip("s3fs", reason="s3fs is not installed; make test-packages installs it")
pytest.importorskip("moto", reason="moto is not installed; make test-packages installs it")

BUCKET = "s3://openavs"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    """The address of the server, of which the environment speaks."""
    patch = pytest.MonkeyPatch()
    with s3_server() as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("openavs")
        yield environment["AWS_ENDPOINT_URL"]
    patch.undo()


@pytest.fixture(scope="module")
def pool(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips, one of which is not a video; they are on the store, too."""
    folder = videos(tmp_path_factory.mktemp("pool") / "videos", 12, seconds=1)
    (folder / "v05.mp4").write_bytes(b"no video")
    upload(folder, f"{BUCKET}/clips")
    return folder


def words(made: Path, out: str | Path, source: str | Path = f"{BUCKET}/clips") -> tuple[str | Path, ...]:
    return (source, "--pipeline", made, "--shard-size", "3", "--workers", "1", "--json", "--out", out)


@pytest.fixture(scope="module")
def whole(pool: Path, slow: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tree of a local job."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert finished(label(*words(slow, out, pool))).json()["ok"] == 11
    return tree(out)


def clips_at(url: str) -> int:
    return sum(name.endswith("result.json") for name in ObjectStore(url).find("clips"))


def wait_for_clips(url: str, count: int) -> None:
    deadline = time.monotonic() + 120
    while clips_at(url) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_s3_creates_an_object_once() -> None:
    store = ObjectStore(f"{BUCKET}/created")
    store.check_create()
    assert store.create("x", b"1")
    assert not store.create("x", b"2")
    assert store.get("x") == b"1"
    won: list[int] = []
    threads = [threading.Thread(target=lambda n=n: won.extend([n] * store.create("y", b"%d" % n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b"%d" % n for n in won] == [store.get("y")]


def test_a_bucket_that_does_not_exist_and_missing_credentials_are_one_sentence(
    slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = finished(label(*words(slow, "s3://absent/labels")))
    assert (absent.code, "s3://absent/labels cannot be written (there is no such bucket)" in absent.err) == (2, True)
    assert "Traceback" not in absent.err
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError, match="there are no credentials for s3://openavs/x"):
        ObjectStore(f"{BUCKET}/x").get("y")


def test_kills_in_the_middle_do_not_show_in_the_results(slow: Path, whole: dict[str, str], tmp_path: Path) -> None:
    url = f"{BUCKET}/killed"
    for count in (2, 6):
        process = label(*words(slow, url))
        wait_for_clips(url, count)
        process.kill()
        process.communicate()
    last = finished(label(*words(slow, url)))
    assert last.code == 1, last.err
    assert last.json()["worked"] <= 12 - 5, "of the last of the six, the line may be missing"
    assert tree(fetch(url, tmp_path / "got")) == whole


def test_a_stop_signal_ends_a_job_that_the_next_run_resumes_at_once(
    slow: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    url = f"{BUCKET}/stopped"
    process = label(*words(slow, url))
    wait_for_clips(url, 2)
    process.send_signal(signal.SIGINT)
    assert "stopped" in finished(process).json()["problem"]
    assert not ObjectStore(url).find("work/claims")
    assert finished(label(*words(slow, url))).code == 1
    assert tree(fetch(url, tmp_path / "got")) == whole


def test_two_jobs_on_one_address_share_the_work(slow: Path, whole: dict[str, str], tmp_path: Path) -> None:
    url = f"{BUCKET}/shared"
    jobs = [label(*words(slow, url)) for _ in range(2)]
    answers = [finished(job) for job in jobs]
    assert [answer.code for answer in answers] == [1, 1], [answer.err for answer in answers]
    assert sum(answer.json()["worked"] for answer in answers) == 12, "no clip was done twice"
    assert all(answer.json()["ok"] == 11 for answer in answers)
    assert tree(fetch(url, tmp_path / "got")) == whole


@contextmanager
def unreliable(server: str, drop: float, cut: threading.Event) -> Iterator[str]:
    """A proxy of the server that drops some connections, and all of them once `cut` is set; yields its address."""
    host, port = server.removeprefix("http://").split(":")
    chance = random.Random(11)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if cut.is_set() or chance.random() < drop:
                return
            with socket.create_connection((host, int(port))) as upstream:
                back = threading.Thread(target=pump, args=(upstream, self.request), daemon=True)
                back.start()
                pump(self.request, upstream)
                back.join(5)

    def pump(source: socket.socket, to: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                if cut.is_set() or chance.random() < drop / 10:
                    break
                to.sendall(data)
        except OSError:
            pass
        for end in (source, to):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
        proxy.shutdown()


def test_the_stage_cache_may_be_on_the_store(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAVS_CACHE", f"{BUCKET}/cache")

    def cached(out: str) -> dict[str, int]:
        command = (pool / "v01.mp4", "--pipeline", "tiny", "--workers", "1", "--json", "--out", tmp_path / out)
        return dict(finished(label(*command)).json()["cached"])

    assert cached("first") == {"captioner misses": 1, "translator misses": 1}
    assert cached("second") == {"captioner hits": 1, "translator hits": 1}
    assert {name.partition("/")[0] for name in ObjectStore(f"{BUCKET}/cache/stages").find()} == {"v3"}


def test_connections_that_break_now_and_then_change_nothing(
    server: str, slow: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    url = f"{BUCKET}/unreliable"
    with unreliable(server, 0.1, threading.Event()) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        done = finished(label(*words(slow, url)))
    assert (done.code, done.json()["ok"]) == (1, 11), done.err
    assert tree(fetch(url, tmp_path / "got")) == whole


def test_a_store_that_is_gone_is_one_sentence_and_the_next_run_resumes(
    server: str, slow: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    url, cut = f"{BUCKET}/gone", threading.Event()
    with unreliable(server, 0.0, cut) as address:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", address)
            process = label(*words(slow, url))
        wait_for_clips(url, 4)
        cut.set()
        ended = finished(process)
    assert ended.code == 2
    assert "could not be reached" in ended.err
    assert "run the same command again" in ended.err
    assert "Traceback" not in ended.err
    again = finished(label(*words(slow, url)))
    assert again.json()["worked"] <= 12 - 3, "of the last of the four, the line may be missing"
    assert tree(fetch(url, tmp_path / "got")) == whole


def test_a_store_that_cannot_be_reached_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "RETRIES", ())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="s3://openavs/x/y could not be reached in 1 attempts"):
        ObjectStore(f"{BUCKET}/x").get("y")
