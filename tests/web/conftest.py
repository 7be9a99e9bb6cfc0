"""One scene, one server and one browser for all tests of the page; skipped without Gradio or a browser."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.media.audio import write_wav
from openavs.structures.types import Waveform
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import sample_scene
from openavs.web import ServerConfig
from openavs.web.inference import ModelCache, recipe_options

CONFIG = ServerConfig(max_upload_mb=1, max_total_mb=50, max_seconds=8, queue=4, reload_seconds=15)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of the synthetic world with a sounding and a silent object."""
    path = tmp_path_factory.mktemp("scene") / "scene.mp4"
    write_clip(path, sample_scene("clip", "test", 4, 0, size=(144, 192), seconds=4).scene)
    return path


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds, two more than the limit of these tests."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    write_clip(path, sample_scene("clip", "test", 4, 0, size=(64, 64), seconds=10).scene)
    return path


@pytest.fixture(scope="session")
def tone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a tone."""
    path = tmp_path_factory.mktemp("tone") / "tone.wav"
    times = np.arange(32000) / 16000
    write_wav(path, Waveform((0.3 * np.sin(2 * np.pi * 440 * times)).astype(np.float32), 16000))
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelCache:
    """The embedded models."""
    return ModelCache(recipe_options(CONFIG), tmp_path_factory.mktemp("answers"))


@dataclass(frozen=True)
class Server:
    """A running page: its address and its temporary folder."""

    address: str
    folder: Path
    models: ModelCache

    def sessions(self) -> list[Path]:
        """Folders of the open sessions."""
        return sorted((self.folder / "sessions").glob("*"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real server in a thread, on a free port."""
    pytest.importorskip("gradio", reason="Gradio is not installed; make test-web installs it")
    from openavs.web.server import Server as WebServer, listening, make_parts
    from openavs.web.session import server_tempdir

    where = tmp_path_factory.mktemp("served")
    with listening("127.0.0.1", 0) as (bound, address), server_tempdir(where) as folder:
        parts = make_parts(CONFIG, folder)
        running = WebServer(parts)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        wait_for(lambda: running.started)
        yield Server(address, folder, parts.models)
        running.should_exit = True
        thread.join(10)
    assert not list(where.iterdir())  # the folder of the server is removed at its end


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; see make test-web")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("chromium is not installed; install it or set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    """Return as soon as a condition holds; fail after a timeout."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition never held"
        time.sleep(0.05)


def free_port() -> int:
    """A port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
