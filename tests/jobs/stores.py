"""A local S3 server for tests, results on stores as folders to compare, and a pool of videos on a store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openavs.utils.objects import ObjectStore

SERVER = """
import sys
import threading

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

moto, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()


def answer(environment, start_response):
    with one_at_a_time:
        return list(moto(environment, start_response))


run_simple("127.0.0.1", int(sys.argv[1]), answer, threaded=True)
"""


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Moto's server in a process of its own; yields the environment of its clients.

    moto looks whether an object exists and then writes it, so requests are answered one at a time here: If-None-Match
    is to be as exact as that of S3.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the S3 server did not start"
                time.sleep(0.1)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def upload(folder: Path, url: str) -> str:
    """Copy a folder to a store; returns the address."""
    store = ObjectStore(url)
    store.put({p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()})
    return url


def fetch(url: str, folder: Path) -> Path:
    """Copy what is below an address into a new folder."""
    store = ObjectStore(url)
    folder.mkdir(parents=True)
    for name, content in store.get_all(list(store.find())).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def without_aws() -> dict[str, str]:
    """The environment without a word for S3."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
