"""Stands before Gradio and lets through only what the page needs.

Gradio answers far more than one page uses: it fetches addresses for a visitor, and, mounted in another application, it
takes the path of any file in place of an upload. Here a request passes only if its route is on a list, its size within
the limit, the files that it names are uploads, its host is one that this server goes by, and no page of another origin
sends it. The answers carry a policy that forbids the browser to fetch anything from elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from openavs.web.room import DiskQuota

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ROUTES = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static)/[^?]*|/results/[\w-]+/[\w.-]+"
    r"|/gradio_api/(info/?|theme\.css|startup-events|queue/(join|data)|run/predict|call/[\w/-]+|cancel|reset/?|upload|upload_progress"
    r"|heartbeat/[\w-]+|file=.*)"
)
UPLOAD = "/gradio_api/upload"
LARGEST_QUESTION = 1_000_000  # bytes of a request that is no upload
FORM_ROOM = 20_000  # bytes that a form takes around its file

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(self), geolocation=()",
}


class RequestRefused(Exception):
    """A request that does not pass: the status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class RequestFilter:
    """An ASGI application around another.

    Args:
        app: what is guarded.
        uploads: the one folder whose files may be named and served.
        max_upload: bytes of one upload.
        room: the space that uploads share.
        too_large: the sentence for a larger one.
        hosts: names that the server goes by, None for any; it keeps a page elsewhere from reaching a server of this
            machine by a name of its own that it points here.
    """

    def __init__(
        self,
        app: App,
        *,
        uploads: Path,
        max_upload: int,
        room: DiskQuota,
        too_large: str,
        hosts: frozenset[str] | None = None,
    ) -> None:
        self._app, self._uploads, self._room = app, uploads.resolve(), room
        self._max_upload, self._too_large, self._hosts = max_upload, too_large, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers with the reason why not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"this server has no {scope['type']}")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            receive = await self._checked(scope, headers, receive)
            if scope["path"] == UPLOAD and scope["method"] == "POST":
                with self._room.reserved(_length(headers)):
                    await self._app(scope, self._room.whole(receive), _with_headers(send))
                return
        except RequestRefused as problem:
            await _answer(send, problem)
            return
        await self._app(scope, receive, _with_headers(send))

    async def _checked(self, scope: Scope, headers: dict[str, str], receive: Receive) -> Receive:
        """Raises Refused, or gives what the application shall read the body from."""
        self._check_host(headers.get("host", ""))
        if scope["method"] not in ("GET", "HEAD"):
            _check_origin(headers)
        path = scope["path"]
        if not ROUTES.fullmatch(path):
            raise RequestRefused(404, "there is no such page here")
        if path.startswith("/gradio_api/file="):
            self._check_file(unquote(path.removeprefix("/gradio_api/file=")), served=True)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        size = _length(headers)
        if path == UPLOAD:
            if size > self._max_upload + FORM_ROOM:
                raise RequestRefused(413, self._too_large)
            return receive
        if size > LARGEST_QUESTION:
            raise RequestRefused(413, "the request is too large")
        body = await _read(receive, size)
        self._check_names(body)
        return _replay(body, receive)

    def _check_host(self, host: str) -> None:
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        if self._hosts is not None and name.strip("[]").lower() not in self._hosts:
            raise RequestRefused(421, "this server does not go by that name; open it as http://127.0.0.1 with its port")

    def _check_names(self, body: bytes) -> None:
        """A question may name no file but uploads: neither others of this machine nor addresses to be fetched."""
        if not body:
            return
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as problem:
            raise RequestRefused(400, "the request is no JSON") from problem
        for name in _paths(data):
            self._check_file(name)

    def _check_file(self, name: str, served: bool = False) -> None:
        try:
            path = Path(name).resolve()
            inside = Path(name).is_absolute() and path.is_relative_to(self._uploads) and path.is_file()
        except (OSError, ValueError):  # too long for a name, a loop of links, a zero byte
            inside = False
        if not inside:
            raise RequestRefused(404 if served else 403, "a file has to be uploaded to this page first")


def _paths(data: Any) -> Iterator[str]:
    """Whatever anything nested calls its `path`."""
    waiting = [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _check_origin(headers: dict[str, str]) -> None:
    """Refuses what a browser sends for a page of another origin; what is no browser's says nothing of an origin.

    `sec-fetch-site` is sent to this machine and over TLS only. Without it the origin must be the host that was asked,
    here or at a proxy.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        is_own = site in ("same-origin", "none")
    else:
        is_own = origin is None or origin.partition("://")[2] in (headers.get("host"), headers.get("x-forwarded-host"))
    if not is_own:
        raise RequestRefused(403, "this server takes nothing from pages of other origins; open its own page")


def _length(headers: dict[str, str]) -> int:
    """The size of a body as its sender says it, which the server holds him to."""
    if not headers.get("content-length", "").isdigit():
        raise RequestRefused(411, "the request does not say how large it is")
    return int(headers["content-length"])


async def _read(receive: Receive, size: int) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise RequestRefused(400, "the request ended early")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    if len(body) > size:
        raise RequestRefused(400, "the request is larger than it says")
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever follows it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await send(message)

    return with_headers


async def _answer(send: Send, problem: RequestRefused) -> None:
    body = f"{problem}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": problem.status, "headers": headers}
    await _with_headers(send)(start)
    await send({"type": "http.response.body", "body": body})
