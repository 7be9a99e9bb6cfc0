"""What the server answers at all: known routes, bounded sizes, uploads and nothing else, its own name."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from openavs.web.guard import HEADERS, LARGEST_QUESTION, RequestFilter
from openavs.web.room import DiskQuota

JSON = {"content-type": "application/json"}


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"video")
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    return folder


@pytest.fixture
def guard(uploads: Path) -> RequestFilter:
    """Around an application that answers with the body it was given."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"] if scope["method"] == "POST" else b"page"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return RequestFilter(
        echo,
        uploads=uploads,
        max_upload=1000,
        room=DiskQuota(uploads, uploads.parent / "visits", 40_000, ValueError),
        too_large="too large",
        hosts=frozenset({"127.0.0.1", "localhost", "::1"}),
    )


@pytest.fixture
def ask(guard: RequestFilter) -> Any:
    """Asks the guarded application: `ask("GET", "/")` -> status, body; `b"..."` is a request that ends early."""

    def ask(method: str, path: str, body: bytes = b"", host: str = "127.0.0.1:7860", **headers: str) -> tuple[int, str]:
        given = {"host": host, "content-length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in given.items() if value],
        }
        sent: list[Any] = []

        async def receive() -> Any:
            kind = "http.disconnect" if body == b"..." else "http.request"
            return {"type": kind, "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        with ThreadPoolExecutor(1) as aside:  # this thread may have a loop already: a browser's
            aside.submit(lambda: asyncio.run(guard(scope, receive, send))).result()
        assert {name.decode() for name, _ in sent[0]["headers"]} >= set(HEADERS)
        return sent[0]["status"], sent[1]["body"].decode()

    return ask


@pytest.mark.parametrize(
    "path", ["/", "/config", "/assets/index-abc.js", "/theme.css", "/gradio_api/info", "/gradio_api/heartbeat/ab-1"]
)
def test_what_the_page_needs_passes(ask: Any, path: str) -> None:
    assert ask("GET", path) == (200, "page")


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
    ],
)
def test_whatever_else_gradio_has_does_not(ask: Any, path: str) -> None:
    assert ask("GET", path)[0] == 404


def test_uploads_are_served_and_other_files_are_not(ask: Any, uploads: Path, tmp_path: Path) -> None:
    assert ask("GET", f"/gradio_api/file={uploads}/a.mp4")[0] == 200
    for path in (
        "/etc/passwd",
        "etc/passwd",
        f"{uploads}/../secret",
        f"{uploads}/link",
        f"{uploads}",
        "http://x/a",
        "\0",
    ):
        assert ask("GET", f"/gradio_api/file={path}")[0] == 404, path


def test_a_question_may_name_uploads_only(ask: Any, uploads: Path) -> None:
    def named(path: str) -> int:
        body = json.dumps({"data": [None, {"x": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}]})
        return int(ask("POST", "/gradio_api/queue/join", body.encode())[0])

    assert named(f"{uploads}/a.mp4") == 200
    for path in ("/etc/passwd", "http://127.0.0.1/a", "https://example.org/a.mp4", f"{uploads}/../secret", "a.mp4"):
        assert named(path) == 403, path


def test_a_question_reaches_the_page_as_it_was_asked(ask: Any) -> None:
    assert ask("POST", "/gradio_api/run/predict", b'{"data": ["dog"]}') == (200, '{"data": ["dog"]}')


def test_questions_that_are_none(ask: Any) -> None:
    assert ask("POST", "/gradio_api/queue/join", b"{")[0] == 400
    assert ask("POST", "/gradio_api/queue/join", b"[" * 100_000)[0] == 400
    assert ask("POST", "/gradio_api/queue/join", b"...") == (400, "the request ended early\n")
    assert ask("POST", "/gradio_api/queue/join", b"") == (200, "")  # names no file
    assert ask("POST", "/gradio_api/queue/join", b"{}", content_length="1")[0] == 400
    assert ask("POST", "/gradio_api/queue/join", content_length=str(LARGEST_QUESTION + 1))[0] == 413
    assert ask("POST", "/gradio_api/queue/join", content_length="")[0] == 411


def test_a_large_upload_is_refused_before_it_is_read(ask: Any) -> None:
    assert ask("POST", "/gradio_api/upload", b"x" * 900)[0] == 200
    assert ask("POST", "/gradio_api/upload", content_length="30000") == (413, "too large\n")


def test_a_web_socket_is_not_opened(guard: RequestFilter) -> None:
    with ThreadPoolExecutor(1) as aside, pytest.raises(RuntimeError, match="this server has no websocket"):
        aside.submit(lambda: asyncio.run(guard({"type": "websocket"}, None, None))).result()  # type: ignore[arg-type]


def test_only_its_own_names_reach_a_server_of_this_machine(ask: Any) -> None:
    for host in ("localhost:7860", "127.0.0.1", "[::1]:7860"):
        assert ask("GET", "/", host=host)[0] == 200
    assert ask("GET", "/", host="attacker.example:7860")[0] == 421


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/call/segment"])
def test_pages_of_other_origins_can_send_nothing(ask: Any, path: str) -> None:
    own, other = "http://127.0.0.1:7860", "http://attacker.example"
    for headers in (
        {},
        {"origin": own},
        {"origin": other, "sec_fetch_site": "same-origin"},  # a proxy names another host than the browser
        {"origin": "https://page.example", "x_forwarded_host": "page.example"},
    ):
        assert ask("POST", path, b"{}", **headers)[0] == 200, headers
    for headers in (
        {"origin": other},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": own, "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ):
        status, said = ask("POST", path, b"{}", **headers)
        assert status == 403 and said.startswith("this server takes nothing from pages of other origins"), headers


def test_an_upload_that_does_not_fit_beside_the_others_is_refused(ask: Any, uploads: Path) -> None:
    (uploads / "other.mp4").write_bytes(bytes(39_500))
    status, said = ask("POST", "/gradio_api/upload", b"x" * 900)
    assert status == 507 and said.endswith("that this server has for them; try again later\n")
    (uploads / "other.mp4").unlink()
    assert ask("POST", "/gradio_api/upload", b"x" * 900)[0] == 200
