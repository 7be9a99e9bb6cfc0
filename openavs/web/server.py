"""Puts the page on a socket: the guard, the files of the visits, Gradio, and the folder that all of it writes into."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.utils.optional_deps import EXTRAS, import_optional
from openavs.web.ending import GracefulShutdown
from openavs.web.example import ExampleClip
from openavs.web.folders import remove_old, server_folder
from openavs.web.guard import RequestFilter
from openavs.web.menu import recipe_options
from openavs.web.models import ModelCache
from openavs.web.room import DiskQuota
from openavs.web.sessions import SessionStore
from openavs.web.settings import LOOPBACK, ServerConfig

log = logging.getLogger(__name__)

SWEEP = 60.0  # s between two looks for what nobody uses any more
HERE = frozenset({*LOOPBACK})
REMEMBERED = 300
"""Visits of which Gradio keeps what their pages look like, 75 kB each, whether they are over or not."""


@dataclass(frozen=True)
class ServerParts:
    """What the page works with. `uploads` is Gradio's folder, the only one whose files it serves."""

    settings: ServerConfig
    models: ModelCache
    sessions: SessionStore
    example: ExampleClip
    uploads: Path


def make_parts(settings: ServerConfig, folder: Path) -> ServerParts:
    """Everything but Gradio; the first recipe's models are loaded.

    Raises:
        InputError, ModelError: there is no such recipe, or it cannot be loaded.
    """
    uploads = folder / "uploads"
    uploads.mkdir()
    models = ModelCache(recipe_options(settings), folder / "answers")
    with models.using(next(iter(models.offers))):
        pass
    sessions = SessionStore(folder / "visits", keep=settings.keep_minutes * 60)
    return ServerParts(settings, models, sessions, ExampleClip(folder / "example"), uploads)


def make_app(parts: ServerParts) -> GracefulShutdown:
    """The whole ASGI application.

    Raises:
        InputError: Gradio is not installed; the sentence names the extra.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(parts.uploads)  # read when Gradio is imported, and again later
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    gradio = import_optional("gradio", "web")
    fastapi = import_optional("fastapi", "web")
    broken = import_optional("starlette.formparsers", "web").MultiPartException
    from openavs.web import page

    settings = parts.settings
    blocks = page.build(parts)
    blocks.state_session_capacity = REMEMBERED  # 10,000 otherwise
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_sweeping(parts))
    app.add_api_route("/results/{token}/{name}", _serve_result(parts.sessions), methods=["GET", "HEAD"])
    gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name=settings.host,
        server_port=settings.port,
        allowed_paths=[],
        max_file_size=settings.max_upload,
        show_error=False,
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=page.theme(),
        head=page.head(),
        js=page.SCRIPT,
    )
    blocks.has_launched = True  # mounted blocks never are, and until then Gradio takes any file for an upload
    guard = RequestFilter(
        app,
        uploads=parts.uploads,
        max_upload=settings.max_upload,
        room=DiskQuota(parts.uploads, parts.sessions.root, settings.max_total, broken),
        too_large=f"the file is larger than the {settings.max_upload_mb} MB that this page takes; cut or scale it down",
        hosts=HERE if settings.is_local else None,
    )
    return GracefulShutdown(guard, parts.sessions.stop)


def _serve_result(sessions: SessionStore) -> Callable[..., Any]:
    responses = import_optional("starlette.responses", "web")

    def result(token: str, name: str, download: str | None = None) -> Any:
        session = sessions.by_token(token)
        path = session.file(name) if session is not None else None
        if session is None or path is None:
            return responses.PlainTextResponse("this file is gone; run the clip again\n", status_code=404)
        kind = {"vtt": "text/vtt", "mp4": "video/mp4", "json": "application/json"}.get(name.rpartition(".")[2])
        headers = {"cache-control": "private, no-store"}
        if download is None:
            return responses.FileResponse(path, media_type=kind, headers=headers)
        return responses.FileResponse(path, media_type=kind, headers=headers, filename=session.called(name))

    result.__annotations__ = {"token": str, "name": str, "download": str | None}
    return result


def _sweeping(parts: ServerParts) -> Callable[[Any], Any]:
    """Removes the files of visits that are over and old uploads, for as long as the server runs."""
    keep = parts.settings.keep_minutes * 60

    async def sweep() -> None:
        while True:
            await asyncio.sleep(min(SWEEP, keep))
            await asyncio.to_thread(parts.sessions.expire)
            await asyncio.to_thread(remove_old, parts.uploads, keep)

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        parts.example.start()
        task = asyncio.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.to_thread(parts.example.end)

    return lifespan


@contextmanager
def listening(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A socket that is bound, and the address of the page; port 0 takes a free one.

    Raises:
        InputError: the port is taken, or the host is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
        except (OSError, OverflowError) as problem:
            why = getattr(problem, "strerror", None) or problem
            raise InputError(f"cannot listen at {host}:{port} ({why}); give another --port or --host") from problem
        bound.listen(128)
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        yield bound, f"http://{shown}:{bound.getsockname()[1]}"


@contextmanager
def _until_ended() -> Iterator[None]:
    """Ctrl+C and SIGTERM end the block in order; uvicorn hands both on when it has closed its connections."""

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        log.info("the server was told to end")
    finally:
        signal.signal(signal.SIGTERM, before)


def runner(app: GracefulShutdown, **settings: Any) -> Any:
    """A uvicorn server of the application, whose `run` ends it in order: visitors are told before it closes."""
    uvicorn = import_optional("uvicorn", "web")

    class Runner(uvicorn.Server):  # type: ignore[misc, name-defined]
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.end()
            await super().shutdown(sockets)

    return Runner(uvicorn.Config(app, log_level="warning", access_log=False, ws="none", **settings))


def serve(settings: ServerConfig, ready: Callable[[str], None], ended: Callable[[int], None]) -> None:
    """Serves the page until it is interrupted; `ready(address)` is called when it can be opened.

    `ended(visitors)` is called at the end: so many waited for an answer, and were told.

    Raises:
        InputError: wrong settings, Gradio is not installed, the port is taken.
        ModelError: the recipe's models cannot be loaded.
    """
    if EXTRAS["web"].version() is None:  # said before anything is loaded; Gradio itself is imported later
        import_optional("gradio", "web")
    with _until_ended(), listening(settings.host, settings.port) as (bound, address), server_folder() as folder:
        app = make_app(make_parts(settings, folder))
        ready(address)
        try:
            runner(app, timeout_graceful_shutdown=2).run(sockets=[bound])
        finally:
            ended(app.told)
