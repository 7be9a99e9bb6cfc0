"""The tiny chain works with every way to a network closed, by Python and by the kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Raises at whatever Python does to reach or to be reached from elsewhere; local pipes between processes stay allowed.
CLOSED = """
import sys

def closed(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto") and not isinstance(arguments[1], (str, bytes)):
        raise SystemExit(f"network: {event} {arguments[1]}")
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect"):
        raise SystemExit(f"network: {event} {arguments}")

sys.addaudithook(closed)
"""
RUN = CLOSED + "from openavs.cli import main\nsys.exit(main(sys.argv[1:]))"


def closed(*words: str | Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-c", RUN, *map(str, words)]
    allowed = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(command, capture_output=True, text=True, env=allowed, timeout=300)


@pytest.mark.parametrize("namespace", [False, True], ids=["Python", "kernel"])
def test_demo_needs_none(tmp_path: Path, namespace: bool) -> None:
    """Without HF_HUB_OFFLINE in the environment: no request is made because none is needed."""
    before: tuple[str, ...] = ("unshare", "--user", "--map-root-user", "--net") if namespace else ()
    if namespace and (not shutil.which("unshare") or subprocess.run([*before, "true"], capture_output=True).returncode):
        pytest.skip("this system does not let a user make a namespace without a network")
    done = closed("demo", "--out", tmp_path / "out", before=before)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "out").glob("**/result.json"))


def test_check_makes_no_request(tmp_path: Path) -> None:
    done = closed("check", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["ready"], done.stderr


def test_offline_makes_no_request(tmp_path: Path) -> None:
    done = closed("segment", "x.mp4", "--pipeline", "openavs-cpu", "--offline", "--out", tmp_path)
    assert done.returncode == 2 and "network:" not in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket().connect(('127.0.0.1', 9))",
        "import socket; socket.socket().bind(('127.0.0.1', 0))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
    ],
)
def test_the_door_is_closed(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", CLOSED + code], capture_output=True, text=True)
    assert done.returncode != 0 and "network:" in done.stderr
