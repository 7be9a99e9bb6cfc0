"""Requests that the server admits: listed routes, limited sizes, uploaded files, its own origin."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from openavs.web import ServerConfig
from openavs.web.server import MAX_BODY, RESPONSE_HEADERS, DiskQuota, RequestFilter, is_file_in

TOO_LARGE = "the file is larger than the limit of 0 MB; cut it or scale it down\n"


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"video")
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    return folder


@pytest.fixture
def request_filter(uploads: Path) -> RequestFilter:
    """In front of an application that returns the body of a request."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"] if scope["method"] == "POST" else b"page"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    quota = DiskQuota(uploads, uploads.parent / "sessions", 40_000)
    return RequestFilter(echo, uploads, quota, ServerConfig(max_upload_mb=0))


@pytest.fixture
def send(request_filter: RequestFilter) -> Any:
    """Send a request: `send("GET", "/")` -> status, body."""

    def send(
        method: str, path: str, body: bytes = b"", host: str = "127.0.0.1:7860", **headers: str
    ) -> tuple[int, str]:
        given = {"host": host, "content-length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in given.items() if value],
        }
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def collect(message: Any) -> None:
            sent.append(message)

        with ThreadPoolExecutor(1) as executor:  # this thread may have the event loop of a browser
            executor.submit(lambda: asyncio.run(request_filter(scope, receive, collect))).result()
        assert {name.decode() for name, _ in sent[0]["headers"]} >= set(RESPONSE_HEADERS)
        return sent[0]["status"], sent[1]["body"].decode()

    return send


@pytest.mark.parametrize(
    "path", ["/", "/config", "/assets/index-abc.js", "/theme.css", "/gradio_api/info", "/gradio_api/heartbeat/ab-1"]
)
def test_routes_of_the_page_are_admitted(send: Any, path: str) -> None:
    assert send("GET", path) == (200, "page")


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=http://x.hf.space/a",
        "/gradio_api/runs",
        "/gradio_api/deep_link",
        "/gradio_api/process_recording",
        "/gradio_api/vibe-edit",
        "/gradio_api/component_server",
        "/monitoring",
        "/docs",
        "/results/token/../secret",
        "/results/token/a/b",
        "/results/token/1/inputs/b",
        "/results/token/b",
        "/results/token/.masks.zip.part",
    ],
)
def test_other_routes_of_gradio_are_refused(send: Any, path: str) -> None:
    assert send("GET", path)[0] == 404


def test_only_uploads_are_served(send: Any, uploads: Path, tmp_path: Path) -> None:
    assert send("GET", f"/gradio_api/file={uploads}/a.mp4")[0] == 200
    for path in (
        "/etc/passwd",
        "etc/passwd",
        f"{uploads}/../secret",
        f"{uploads}/link",
        f"{uploads}",
        "http://x/a",
        "\0",
    ):
        assert send("GET", f"/gradio_api/file={path}")[0] == 404, path


def test_files_outside_of_the_uploads_are_found_out(uploads: Path) -> None:
    assert is_file_in(uploads, f"{uploads}/a.mp4")
    outside = ("/etc/passwd", "http://127.0.0.1/a", f"{uploads}/../secret", f"{uploads}/link", "a.mp4", "x" * 5000)
    assert not any(is_file_in(uploads, name) for name in outside)


def test_the_body_of_a_request_is_passed_on(send: Any) -> None:
    assert send("POST", "/gradio_api/run/predict", b'{"data": ["dog"]}') == (200, '{"data": ["dog"]}')


def test_requests_need_a_length_within_the_limit(send: Any) -> None:
    assert send("POST", "/gradio_api/queue/join", content_length=str(MAX_BODY + 1))[0] == 413
    assert send("POST", "/gradio_api/queue/join", content_length="")[0] == 411


def test_a_large_upload_is_refused_before_it_is_read(send: Any) -> None:
    assert send("POST", "/gradio_api/upload", b"x" * 900)[0] == 200
    assert send("POST", "/gradio_api/upload", content_length="30000") == (
        413,
        "the file is larger than the limit of 0 MB; cut it or scale it down\n",
    )


def test_websockets_are_refused(request_filter: RequestFilter) -> None:
    with ThreadPoolExecutor(1) as executor, pytest.raises(RuntimeError, match="does not support websocket"):
        executor.submit(lambda: asyncio.run(request_filter({"type": "websocket"}, None, None))).result()  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/call/segment"])
def test_requests_of_other_origins_are_refused(send: Any, path: str) -> None:
    own, other = "http://127.0.0.1:7860", "http://attacker.example"
    for headers in (
        {},
        {"origin": own},
        {"origin": other, "sec_fetch_site": "same-origin"},  # a proxy names another host than the browser
        {"origin": "https://page.example", "x_forwarded_host": "page.example"},
    ):
        assert send("POST", path, b"{}", **headers)[0] == 200, headers
    for headers in (
        {"origin": other},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": own, "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ):
        status, message = send("POST", path, b"{}", **headers)
        assert status == 403 and message.startswith("requests from pages of other origins are refused"), headers


def test_an_upload_over_the_total_limit_is_refused(send: Any, uploads: Path) -> None:
    (uploads / "other.mp4").write_bytes(bytes(39_500))
    status, message = send("POST", "/gradio_api/upload", b"x" * 900)
    assert status == 507 and message.endswith("for the files of all users is reached; try again later\n")
    (uploads / "other.mp4").unlink()
    assert send("POST", "/gradio_api/upload", b"x" * 900)[0] == 200
