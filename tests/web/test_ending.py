"""A server that ends in the middle of work: waiting visitors are told, the rest is finished or refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from openavs.web import ending
from openavs.web.ending import SENTENCE, GracefulShutdown

STREAM = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
PAGE = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]}


def piece(**message: Any) -> dict[str, Any]:
    """A message as Gradio puts it on a stream."""
    return {"type": "http.response.body", "body": f"data: {json.dumps(message)}\n\n".encode(), "more_body": True}


def ended(app: Callable[..., Awaitable[None]]) -> tuple[GracefulShutdown, list[Any]]:
    """Sends one request to an application, ends it in the middle, and gives what was answered."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def session() -> GracefulShutdown:
        stopped: list[bool] = []
        server = GracefulShutdown(app, lambda: stopped.append(True))
        request = asyncio.ensure_future(server({"type": "http"}, receive, send))
        await asyncio.sleep(0.05)
        server.end()
        await asyncio.wait_for(request, 10)
        assert stopped == [True]
        return server

    with ThreadPoolExecutor(1) as beside:  # the browser of other tests has this thread's event loop
        return beside.submit(lambda: asyncio.run(session())).result(), sent


def test_who_waits_on_a_stream_is_told_and_who_was_answered_is_not() -> None:
    async def queue(scope: Any, receive: Any, send: Any) -> None:
        await send(STREAM)
        await send(piece(msg="estimation", event_id="a1", rank=3))
        await send(piece(msg="estimation", event_id="b2", rank=4))
        await send(piece(msg="process_completed", event_id="b2", output={"data": ['"event_id": "c3"']}))
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await send(piece(msg="unexpected_error", message="what Gradio says when it is cut off"))
            raise

    server, sent = ended(queue)
    last = sent[-1]["body"].decode().strip().split("\n\n")
    assert not sent[-1].get("more_body")
    assert [json.loads(line.removeprefix("data: ")) for line in last] == [
        {"msg": "process_completed", "event_id": "a1", "success": False, "output": {"error": SENTENCE}},
        {"msg": "close_stream", "event_id": None},
    ]
    assert not any(b"unexpected_error" in message.get("body", b"") for message in sent)
    assert server.told == 1


def test_a_stream_on_which_nobody_waits_just_ends() -> None:
    async def heartbeat(scope: Any, receive: Any, send: Any) -> None:
        await send(STREAM)
        await asyncio.sleep(60)

    server, sent = ended(heartbeat)
    assert (server.told, sent[1:]) == (0, [{"type": "http.response.body", "body": b""}])


def test_a_short_request_is_finished() -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.3)
        await send(PAGE)
        await send({"type": "http.response.body", "body": b"page"})

    assert ended(page)[1][-1]["body"] == b"page"


def test_a_long_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(ending, "GRACE", 0.1)
    server, sent = ended(slow)
    assert (sent[0]["status"], sent[1]["body"].decode(), server.told) == (503, f"{SENTENCE}\n", 0)


def test_an_error_of_the_application_stays_one() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ended(broken)
