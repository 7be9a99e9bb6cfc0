"""Server of the web page: Gradio and the files of the sessions behind a request filter, run by uvicorn.

Gradio has more routes than the page uses, fetches addresses for its clients, and mounted in another application it
accepts the path of any file as an upload. The filter therefore admits listed routes only, and `app` admits uploaded
files only.
"""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openavs.errors import InputError
from openavs.web import LOOPBACK, ServerConfig
from openavs.web.inference import ModelCache, recipe_options
from openavs.web.session import SessionStore, remove_old_files, server_tempdir, write_example

logger = logging.getLogger(__name__)

ROUTES = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static)/[^?]*"
    r"|/results/[\w-]+/\d+/\w[\w.-]*|/gradio_api/(info/?|theme\.css|startup-events|queue/(join|data)|run/predict|call/[\w/-]+"
    r"|cancel|reset/?|upload|upload_progress|heartbeat/[\w-]+|file=.*)"
)
UPLOAD = "/gradio_api/upload"
FILE = "/gradio_api/file="
MAX_BODY = 1_000_000  # bytes of a request without files
FORM_OVERHEAD = 20_000  # bytes of an upload form around its file
UPLOAD_TIMEOUT = 60.0  # seconds without data
MAX_SESSION_STATES = 300
"""Pages whose state Gradio keeps, 75 kB each, also after they were closed; its default is 10,000."""
SWEEP_INTERVAL = 60  # seconds between two removals of expired files
SHUTDOWN_MESSAGE = "the server has been stopped; try again when it is running"

RESPONSE_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(self), geolocation=()",
}


# ------------------------------------------------------------------------------------------------------------- filter


class RequestRefused(Exception):
    """A request that the filter answers itself, with a status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class DiskQuota:
    """Limits the files of all sessions together; for the event loop of the server only.

    Args:
        uploads: Gradio's folder. Incomplete uploads are files in it, complete ones are in its subfolders.
        sessions: the folder of the sessions, which contain links to their uploads.
        limit: bytes on disk and of uploads in progress.
    """

    def __init__(self, uploads: Path, sessions: Path, limit: int) -> None:
        self._uploads, self._sessions, self._limit = uploads, sessions, limit
        self._reserved: list[int] = []

    def used(self) -> int:
        """Bytes on disk; a file with several links counts once."""
        sizes = {}
        for top in (self._uploads, self._sessions):
            for folder, _, names in os.walk(top):
                for name in names:
                    with suppress(FileNotFoundError):  # a session may end meanwhile
                        info = os.lstat(os.path.join(folder, name))
                        sizes[info.st_dev, info.st_ino] = info.st_size
        return sum(sizes.values())

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Reserve space for an upload in progress; RequestRefused (507) if the limit is reached."""
        if self.used() + sum(self._reserved) + size > self._limit:
            raise RequestRefused(
                507, f"the limit of {self._limit >> 20} MB for the files of all users is reached; try again later"
            )
        self._reserved.append(size)
        try:
            yield
        finally:
            self._reserved.remove(size)
            for path in () if self._reserved else list(self._uploads.iterdir()):  # left by uploads that failed
                if path.is_file():
                    path.unlink(missing_ok=True)


class RequestFilter:
    """ASGI middleware that admits the requests of the page only and adds security headers to all responses.

    Args:
        app: the application behind it.
        uploads: the only folder whose files Gradio may serve.
        quota: reserves space for uploads.
        config: limits.
    """

    def __init__(self, app: ASGIApp, uploads: Path, quota: DiskQuota, config: ServerConfig) -> None:
        self._app, self._uploads, self._quota, self._config = app, uploads, quota, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with the reason for refusing it."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            raise RuntimeError(f"this server does not support {scope['type']} requests")
        headers, path = Headers(scope=scope), scope["path"]
        is_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                MutableHeaders(scope=message).update(RESPONSE_HEADERS)
                if path.startswith("/results/"):
                    MutableHeaders(scope=message)["cache-control"] = "private, no-store"
            await send(message)

        try:
            size = self._check(scope["method"], path, headers)
            if path == UPLOAD and scope["method"] == "POST":
                with self._quota.reserve(size):
                    await self._app(scope, check_complete(receive), send_with_headers)
            else:
                await self._app(scope, receive, send_with_headers)
        except RequestRefused as error:
            await PlainTextResponse(f"{error}\n", error.status)(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # by uvicorn at shutdown, after `timeout_graceful_shutdown`
            if not is_started:
                await PlainTextResponse(f"{SHUTDOWN_MESSAGE}\n", 503)(scope, receive, send_with_headers)

    def _check(self, method: str, path: str, headers: Headers) -> int:
        """The size of the body; RequestRefused if the request is not one of the page."""
        if not ROUTES.fullmatch(path):
            raise RequestRefused(404, "this page does not exist")
        if path.startswith(FILE) and not is_file_in(self._uploads, path.removeprefix(FILE)):
            raise RequestRefused(404, "this file does not exist")
        if method in ("GET", "HEAD"):
            return 0
        if not _is_same_origin(headers):
            raise RequestRefused(403, "requests from pages of other origins are refused; open the page of this server")
        length = headers.get("content-length", "")
        if not length.isdigit():
            raise RequestRefused(411, "the request has no Content-Length")
        if path == UPLOAD and int(length) > self._config.max_upload + FORM_OVERHEAD:
            limit = self._config.max_upload_mb
            raise RequestRefused(413, f"the file is larger than the limit of {limit} MB; cut it or scale it down")
        if path != UPLOAD and int(length) > MAX_BODY:
            raise RequestRefused(413, "the request is too large")
        return int(length)


def is_file_in(folder: Path, name: str) -> bool:
    """True if `name` is the absolute path of an existing file below `folder`, links resolved."""
    try:
        path = Path(name)
        return path.is_absolute() and path.resolve().is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError):  # too long, a loop of links, a zero byte
        return False


def _is_same_origin(headers: Headers) -> bool:
    """False if a browser sent the request from a page of another origin; other clients send no origin.

    Browsers send `sec-fetch-site` to this machine and over TLS only. Without it the origin must be the requested host,
    which a proxy may pass as `x-forwarded-host`.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or origin.partition("://")[2] in (headers.get("host"), headers.get("x-forwarded-host"))


def check_complete(receive: Receive) -> Receive:
    """Wrap `receive`: an upload that ends early or stalls is an error for which Gradio removes its files."""
    is_complete = False

    async def receive_part() -> Message:
        nonlocal is_complete
        if is_complete:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), UPLOAD_TIMEOUT)
        except TimeoutError:
            raise MultiPartException(f"no data for {UPLOAD_TIMEOUT:g} s; upload the file again") from None
        if message["type"] == "http.disconnect":
            raise MultiPartException("the upload ended early")
        is_complete = not message.get("more_body", False)
        return message

    return receive_part


# --------------------------------------------------------------------------------------------------------- application


@dataclass(frozen=True)
class ServerParts:
    """Parts that the page uses; `uploads` is Gradio's folder."""

    config: ServerConfig
    models: ModelCache
    sessions: SessionStore
    example: Path
    uploads: Path


def make_parts(config: ServerConfig, folder: Path) -> ServerParts:
    """Create everything but Gradio inside `folder` and load the models of the first recipe.

    Raises:
        InputError, ModelError: the recipe is unknown or its models cannot be loaded.
    """
    uploads = folder / "uploads"
    uploads.mkdir()
    models = ModelCache(recipe_options(config), folder / "answers")
    with models.pipeline(next(iter(models.options))):
        pass
    sessions = SessionStore(folder / "sessions", config.keep_minutes * 60, config.reload_seconds)
    return ServerParts(config, models, sessions, write_example(folder), uploads)


def make_app(parts: ServerParts) -> tuple[ASGIApp, Any]:
    """The ASGI application, and Gradio's blocks inside it."""
    os.environ["GRADIO_TEMP_DIR"] = str(parts.uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    from openavs.web import app as page

    config = parts.config
    blocks = page.build(parts)
    blocks.state_session_capacity = MAX_SESSION_STATES
    mimetypes.add_type("text/vtt", ".vtt")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/results", StaticFiles(directory=parts.sessions.root))
    gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=config.host,
        server_port=config.port,
        allowed_paths=[],
        max_file_size=config.max_upload,
        show_error=False,
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=page.theme(),
        head=page.head(),
        js=page.script(),
    )
    blocks.has_launched = True  # never set for mounted blocks; without it Gradio accepts any file as an upload
    blocks.server_app = cast(Mount, app.routes[-1]).app  # as in `launch()`
    quota = DiskQuota(parts.uploads, parts.sessions.root, config.max_total)
    filtered = RequestFilter(app, parts.uploads, quota, config)
    # A page elsewhere could point a name of its own to a server of this machine.
    hosts = [f"[{name}]" if ":" in name else name for name in LOOPBACK] if config.is_local else ["*"]
    return TrustedHostMiddleware(filtered, hosts, www_redirect=False), blocks


# ----------------------------------------------------------------------------------------------------------------- run


class Server(uvicorn.Server):
    """A uvicorn server that removes expired files and ends pending requests with a message at its shutdown.

    Attributes:
        canceled: number of requests that were pending at the shutdown.
    """

    def __init__(self, parts: ServerParts) -> None:
        app, self._blocks = make_app(parts)
        self._parts = parts
        self.canceled = 0
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                ws="none",
                timeout_graceful_shutdown=2,
                callback_notify=self._remove_expired,
                timeout_notify=SWEEP_INTERVAL,
            )
        )

    async def _remove_expired(self) -> None:
        try:
            await asyncio.to_thread(self._parts.sessions.expire)
            await asyncio.to_thread(remove_old_files, self._parts.uploads, self._parts.config.keep_minutes * 60)
        except OSError as error:  # would end the server
            logger.warning("expired files cannot be removed: %s", error)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cancel what is pending, then close all connections."""
        self._parts.sessions.stop_all()
        self.canceled = _cancel_pending(self._blocks)
        await super().shutdown(sockets)


def _cancel_pending(blocks: Any) -> int:
    """Send an error for each pending event, as Gradio's own `/cancel` does, and end the heartbeats of all pages."""
    from gradio.server_messages import ProcessCompletedMessage

    queue = blocks._queue
    events, messages = queue.event_ids_to_events.values(), queue.pending_messages_per_session
    pending = [event for event in events if event.alive and event.session_hash in messages]
    for waiting in queue.event_queue_per_concurrency_id.values():
        waiting.queue.clear()
    for event in pending:
        queue.send_message(event, ProcessCompletedMessage(output={"error": SHUTDOWN_MESSAGE}, success=False))
        event.alive = False  # no other message follows
    blocks.is_running = False
    blocks.server_app.stop_event.set()
    return len(pending)


@contextmanager
def listening(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A bound socket and the address of the page; port 0 selects a free one.

    Raises:
        InputError: the port is in use, or the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot listen at {host}:{port} ({reason}); give another --port or --host") from error
        bound.listen(128)
        name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        yield bound, f"http://{name}:{bound.getsockname()[1]}"


def serve(config: ServerConfig, on_ready: Callable[[str], None], on_closed: Callable[[int], None]) -> None:
    """Serve the page until Ctrl+C or SIGTERM.

    Args:
        config: options.
        on_ready: called with the address of the page.
        on_closed: called at the end with the number of requests that were canceled.

    Raises:
        InputError: wrong options, or the port is in use.
        ModelError: the models of the recipe cannot be loaded.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # uvicorn raises both signals again at its end
    try:
        with listening(config.host, config.port) as (bound, address), server_tempdir() as folder:
            server = Server(make_parts(config, folder))
            on_ready(address)
            try:
                server.run(sockets=[bound])
            finally:
                on_closed(server.canceled)
    except KeyboardInterrupt:
        logger.info("stopped by a signal")
    finally:
        signal.signal(signal.SIGTERM, before)
