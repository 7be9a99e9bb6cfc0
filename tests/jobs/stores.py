"""Local object stores for tests: servers of S3 and Google Cloud Storage, uploads, results as folders to compare."""

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

S3 = """
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


GCS = """
import sys
import threading
from http import HTTPStatus

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

upload, handle, one_at_a_time = objects._multipart_upload, server.Router.handle, threading.Lock()


def create_if_absent(request, response, storage):
    if request.query.get("ifGenerationMatch") == ["0"]:
        try:
            storage.get_file_obj(request.params["bucket_name"], request.data["meta"]["name"])
        except NotFound:
            pass
        else:
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
    upload(request, response, storage)


def answer(self, method):
    with one_at_a_time:
        handle(self, method)


objects._multipart_upload, server.Router.handle = create_if_absent, answer
server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="openavs").run()
"""


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Moto's server in a process of its own; yields the environment of its clients.

    moto looks whether an object exists and then writes it, so requests are answered one at a time here: If-None-Match
    is to be as exact as that of S3.
    """
    with _server(S3) as address:
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def gcs_server() -> Iterator[dict[str, str]]:
    """gcp-storage-emulator in a process of its own, with a bucket `openavs`; yields the environment of its clients.

    The emulator ignores ifGenerationMatch, which is added here: the store itself creates an object once.
    """
    with _server(GCS) as address:
        # Without this gcsfs requests the kind of each bucket from the real service.
        yield {"STORAGE_EMULATOR_HOST": address, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@contextmanager
def _server(script: str) -> Iterator[str]:
    """Run a server of a script in a process of its own; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", script, str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
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
