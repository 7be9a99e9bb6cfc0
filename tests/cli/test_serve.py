"""`openavs serve` from the command line: it says where it is, ends on a signal and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import sample_scene
from openavs.web import ServerConfig
from tests.web.conftest import wait_for

Run = Callable[..., Any]
WAITING = ("IN_QUEUE", "PROCESSING", "PROGRESS", "ITERATING")  # what a client calls it


def test_without_gradio_one_sentence_names_the_extra(openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    monkeypatch.setitem(sys.modules, "gradio", None)  # as Python marks a module that must not be found
    done = openavs("serve", "--port", "0", "--pipeline", "tiny")
    assert done.code == 2
    assert done.err == 'openavs: gradio cannot be used: gradio is not installed; pip install "openavs[web]"\n'


@pytest.mark.parametrize(
    ("arguments", "out", "err"),
    [
        ((), "openavs: http://here (stop with Ctrl+C)\n", "openavs: the page is closed\n"),
        (("--quiet",), "", ""),
        (
            ("--quiet", "--host", "0.0.0.0"),
            "",
            "openavs: the page has no authentication; anyone on the network can use it\n",
        ),
    ],
)
def test_an_open_page_is_reported_even_with_quiet(
    openavs: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], out: str, err: str
) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed; make test-web installs it")
    opened: list[str] = []

    def serve(config: ServerConfig, on_ready: Callable[[str], None], on_closed: Callable[[int], None]) -> None:
        on_ready("http://here")
        on_closed(0)

    monkeypatch.setattr("openavs.web.server.serve", serve)
    monkeypatch.setattr("webbrowser.open", opened.append)
    done = openavs("serve", "--pipeline", "tiny", *arguments)
    assert (done.code, done.out, done.err) == (0, out, err)
    assert opened == []
    openavs("serve", "--pipeline", "tiny", "--open", *arguments)
    assert opened == ["http://here"]


def test_overrides_of_the_recipe(openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed; make test-web installs it")
    given: list[ServerConfig] = []
    monkeypatch.setattr("openavs.web.server.serve", lambda config, *_: given.append(config))
    arguments = ("filtering.box_threshold=0.2", "translator={use: lexicon}")
    assert openavs("serve", "--pipeline", "tiny", *arguments, "--device", "cpu").code == 0
    assert [(one.pipeline, one.overrides, one.device) for one in given] == [("tiny", arguments, "cpu")]
    wrong = openavs("serve", "tiny")
    assert (wrong.code, len(given)) == (2, 1)
    assert wrong.err.startswith("openavs: 'tiny' is not key=value, such as filtering.box_threshold=0.3")


@pytest.mark.slow
def test_a_taken_port_and_an_unknown_recipe(openavs: Run) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed; make test-web installs it")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = openavs("serve", "--port", port, "--pipeline", "tiny")
    assert done.code == 2
    assert f"cannot listen at 127.0.0.1:{port}" in done.err
    assert "give another --port" in done.err
    unknown = openavs("serve", "--port", "0", "--pipeline", "tinny")
    assert (unknown.code, "there is no recipe 'tinny'" in unknown.err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_a_signal_and_removes_its_files(tmp_path: Path, end: int) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed; make test-web installs it")
    command = [sys.executable, "-m", "openavs", "serve", "--port", "0", "--pipeline", "tiny"]
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            found = re.fullmatch(r"openavs: (http://127\.0\.0\.1:\d+) \(stop with Ctrl\+C\)\n", line)
            assert found, line
            page = urllib.request.urlopen(found[1], timeout=60).read().decode()
            assert "What makes the sound?" in page
            running.send_signal(end)
            _, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, err) == (0, "openavs: the page is closed\n")
    assert not list(tmp_path.glob("openavs-serve-*"))


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_pending_requests_are_canceled_at_the_end(tmp_path: Path, end: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gradio = pytest.importorskip("gradio_client", reason="Gradio is not installed; make test-web installs it")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # for files that clients fetch
    clip = tmp_path / "clip.mp4"
    write_clip(clip, sample_scene("clip", "test", 4, 0, size=(144, 192), seconds=40).scene)
    command = [sys.executable, "-m", "openavs", "serve", "--port", "0", "--pipeline", "tiny"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as running:
        try:
            assert running.stdout is not None
            address = running.stdout.readline().split()[1]
            clients = [gradio.Client(address, verbose=False) for _ in range(3)]
            jobs = [client.submit(gradio.handle_file(clip), api_name="/segment") for client in clients]
            wait_for(lambda: all(job.status().code.name in WAITING for job in jobs))
            running.send_signal(end)
            _, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, err) == (0, "openavs: the page is closed; 3 pending requests canceled\n")
    for job in jobs:
        with pytest.raises(Exception, match="the server has been stopped; try again when it is running"):
            job.result(timeout=10)


def test_models_are_named_before_the_page_that_cannot_load_them(
    openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="Gradio is not installed; make test-web installs it")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("openavs.web.server.serve", lambda *_: pytest.fail("the server was started"))
    done = openavs("serve", "--pipeline", "openavs-cpu", "--device", "cpu", "--offline")
    assert done.code == 2
    assert "3 of 3 models are not on this disk" in done.err and done.err.count("  hf download ") == 3
