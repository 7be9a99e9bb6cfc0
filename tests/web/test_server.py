"""The server as a whole: memory of closed sessions, expired files, shutdown."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openavs.web.server import MAX_SESSION_STATES, SHUTDOWN_MESSAGE, Server, listening, make_app, make_parts
from tests.web.conftest import CONFIG, wait_for

pytest.importorskip("gradio", reason="Gradio is not installed; make test-web installs it")


def test_gradio_keeps_the_state_of_a_limited_number_of_pages(tmp_path: Path) -> None:
    """Memory would grow by 75 kB with each page view."""
    _, blocks = make_app(make_parts(CONFIG, tmp_path))
    for page in range(MAX_SESSION_STATES + 50):
        blocks.state_holder[f"page {page}"]
    states = blocks.state_holder.session_data
    assert len(states) <= MAX_SESSION_STATES + 1
    assert f"page {MAX_SESSION_STATES + 49}" in states and "page 0" not in states


def test_unused_files_are_removed(tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An API client has no page that is closed: the session, its upload and the copies of its results expire."""
    httpx: Any = pytest.importorskip("httpx")
    monkeypatch.setattr("openavs.web.server.SWEEP_INTERVAL", 0.2)
    with listening("127.0.0.1", 0) as (bound, address):
        server = Server(make_parts(replace(CONFIG, keep_minutes=3 / 60), tmp_path))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        with scene.open("rb") as file:
            path = httpx.post(f"{address}/gradio_api/upload", files={"files": file}).json()[0]
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, "tiny", "", None]
        event = httpx.post(f"{address}/gradio_api/call/segment", json={"data": data}).json()["event_id"]
        done = httpx.get(f"{address}/gradio_api/call/segment/{event}", timeout=60).text
        assert "event: complete" in done
        assert list((tmp_path / "sessions").iterdir()) and list((tmp_path / "uploads").iterdir())
        wait_for(lambda: not list((tmp_path / "sessions").iterdir()) and not list((tmp_path / "uploads").iterdir()))
        server.should_exit = True
        thread.join(20)


@pytest.mark.slow
def test_pending_requests_get_a_message_at_shutdown(
    tmp_path: Path, scene: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A call of the API, a waiting page and an upload in progress end without a traceback."""
    httpx: Any = pytest.importorskip("httpx")
    with listening("127.0.0.1", 0) as (bound, address), ThreadPoolExecutor(4) as executor:
        parts = make_parts(CONFIG, tmp_path)
        server = Server(parts)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        api = f"{address}/gradio_api"
        with scene.open("rb") as file:
            path = httpx.post(f"{api}/upload", files={"files": file}).json()[0]
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, "tiny", "", None]
        functions = httpx.get(f"{address}/config").json()["dependencies"]
        (number,) = [one["id"] for one in functions if one["api_name"] == "segment"]
        try:
            with parts.models.pipeline("tiny"):  # requests wait for the models
                event = httpx.post(f"{api}/call/segment", json={"data": data}).json()["event_id"]
                joined = {"data": data, "fn_index": number, "session_hash": "page"}
                assert httpx.post(f"{api}/queue/join", json=joined).status_code == 200
                called = executor.submit(httpx.get, f"{api}/call/segment/{event}", timeout=60)
                waiting = executor.submit(httpx.get, f"{api}/queue/data?session_hash=page", timeout=60)
                heartbeat = executor.submit(httpx.get, f"{api}/heartbeat/page", timeout=60)
                with socket.create_connection(bound.getsockname()) as stalled:
                    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n"
                    stalled.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode())
                    wait_for(lambda: len(server.server_state.tasks) == 4)
                    server.should_exit = True
                    thread.join(20)
                    refused = stalled.recv(10_000).decode()
        finally:
            server.should_exit = True
        assert not thread.is_alive()
        assert server.canceled == 2
        assert called.result().text.strip().endswith(f"event: error\ndata: {json.dumps({'error': SHUTDOWN_MESSAGE})}")
        messages = [json.loads(line[6:]) for line in waiting.result().text.split("\n") if line]
        assert [message["msg"] for message in messages[-2:]] == ["process_completed", "close_stream"]
        assert messages[-2]["output"] == {"error": SHUTDOWN_MESSAGE}
        heartbeat.result()
        assert refused.startswith("HTTP/1.1 503") and refused.endswith(f"{SHUTDOWN_MESSAGE}\n")
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out
