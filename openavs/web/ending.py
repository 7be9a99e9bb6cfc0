"""The end of a server in the middle of work: whoever waits is told in a sentence, and nothing is torn off.

A server that is interrupted has visitors on long answers, in which Gradio tells them how far their question is. Cut
off, they would learn nothing, and each would leave a traceback behind. So the last thing that they are told is that the
server ends; other requests have a moment to finish, or are refused.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator

from openavs.web.guard import App, Message, Receive, Scope, Send

SENTENCE = "the server was told to end before this was answered; ask again when it runs again"
GRACE = 1.0  # s that a request has which is no long answer
STREAM = b"text/event-stream"
_EVENT = re.compile(rb'"event_id":\s*"(\w+)"')
_DONE = re.compile(rb'"msg":\s*"process_completed"')


class GracefulShutdown:
    """An ASGI application around another; after `end` nothing is under way in it any more, within `GRACE`.

    `stop` is called then, and has the models stop at their next step.
    """

    def __init__(self, app: App, stop: Callable[[], None]) -> None:
        self._app, self._stop = app, stop
        self._over = asyncio.Event()
        self.told = 0  # visitors that waited for an answer when it ended

    def end(self) -> None:
        """Has everybody told; from the thread of the server."""
        self._over.set()
        self._stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a request on; what is still under way at the end is ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        work = asyncio.ensure_future(self._app(scope, receive, answer.send))
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({work, over}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not answer.is_stream:
                await asyncio.wait({work}, timeout=GRACE)
            if work.done():
                work.result()
                return
        finally:
            over.cancel()
            work.cancel()
        self.told += bool(answer.waiting)
        await answer.close()


class _Answer:
    """What was sent of an answer so far, as far as it decides how to end it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = self._closed = self.is_stream = False
        self.waiting: set[bytes] = set()  # questions of a stream that are not answered yet

    async def send(self, message: Message) -> None:
        """Sends on what the application says, until the end."""
        if self._closed:
            return
        if message["type"] == "http.response.start":
            self._begun = True
            self.is_stream = any(n.lower() == b"content-type" and STREAM in v for n, v in message["headers"])
        elif self.is_stream:
            self._note(message.get("body", b""))
        await self._send(message)

    def _note(self, body: bytes) -> None:
        for piece in body.split(b"\n\n"):
            events = set(_EVENT.findall(piece))
            self.waiting = self.waiting - events if _DONE.search(piece) else self.waiting | events

    async def close(self) -> None:
        """Ends the answer: a stream tells each question that waits; one that was not begun is refused."""
        self._closed = True
        if self.is_stream:
            await self._send({"type": "http.response.body", "body": b"".join(self._last_words())})
        elif not self._begun:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await self._send({"type": "http.response.start", "status": 503, "headers": headers})
            await self._send({"type": "http.response.body", "body": f"{SENTENCE}\n".encode()})

    def _last_words(self) -> Iterator[bytes]:
        """Messages as Gradio's clients and page read them."""
        for event in sorted(self.waiting):
            refusal = {"msg": "process_completed", "event_id": event.decode(), "success": False}
            yield f"data: {json.dumps({**refusal, 'output': {'error': SENTENCE}})}\n\n".encode()
        if self.waiting:
            yield b'data: {"msg": "close_stream", "event_id": null}\n\n'
