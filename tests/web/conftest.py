"""One scene, one server, one browser for all tests of the page; what is not installed is a reason to skip."""

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

from openavs.media import write_wav
from openavs.structures.types import Waveform
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scene_sampling import sample_scene
from openavs.web.menu import recipe_options
from openavs.web.models import ModelCache
from openavs.web.settings import ServerConfig

SETTINGS = ServerConfig(max_upload_mb=1, max_total_mb=50, max_seconds=8, queue=4)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of the synthetic world: something sounds, and something silent stands by."""
    path = tmp_path_factory.mktemp("scene") / "scene.mp4"
    write_clip(path, sample_scene("clip", "test", 4, 0, size=(144, 192), seconds=4).scene)
    return path


@pytest.fixture(scope="session")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds, two more than the page of these tests takes."""
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
    """The embedded models, as the page holds them."""
    return ModelCache(recipe_options(SETTINGS), tmp_path_factory.mktemp("answers"))


@dataclass(frozen=True)
class Server:
    """A running page: its address and the one folder that it writes into."""

    address: str
    folder: Path

    def visits(self) -> list[Path]:
        """The folders of the visits that are going on."""
        return sorted((self.folder / "visits").glob("*"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real server in a thread, on a free port; it ends with the tests."""
    pytest.importorskip("gradio", reason="Gradio is not installed; make test-web installs it")
    import uvicorn

    from openavs.web.folders import server_folder
    from openavs.web.server import listening, make_app, make_parts

    where = tmp_path_factory.mktemp("served")
    with listening("127.0.0.1", 0) as (bound, address), server_folder(where) as folder:
        app = make_app(make_parts(SETTINGS, folder))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, ws="none")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        wait_for(lambda: running.started)
        yield Server(address, folder)
        running.should_exit = True
        thread.join(10)
    assert not list(where.iterdir())  # nothing is left of a server that ended


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium of this machine."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; see make test-web")
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("there is no chromium; install one or set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    """Returns as soon as a condition holds; fails when it never does."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "this never came about"
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
