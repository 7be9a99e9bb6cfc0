"""A real HTTP server on this machine that answers chat requests with a test's function and records them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fields = dict[str, Any]


@dataclass
class Answer:
    """Response: status, headers, and the body as a whole or in delayed chunks."""

    body: bytes | Iterator[bytes] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Script = Callable[[Fields, int], Answer]  # the request's fields and its number, from 1


@dataclass
class LocalServer:
    """Recorded requests: their bodies, headers and arrival times, and the maximum number in flight."""

    url: str
    requests: list[Fields] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    max_in_flight: int = 0


def completion(text: str | None, **more: Any) -> Answer:
    """A chat completion with that answer; `finish_reason`, or fields of the message such as `refusal`."""
    reason = more.pop("finish_reason", "stop")
    message = {"role": "assistant", "content": text, **more}
    data = {
        "model": "small-1",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }
    return Answer(json.dumps(data).encode())


def phrases(*runs: list[str]) -> Answer:
    """A chat completion that names these phrases, by run."""
    return completion(json.dumps(dict(enumerate(runs))))


def refusal(status: int, message: str = "", **more: Any) -> Answer:
    """An error as OpenAI's server writes it."""
    headers = more.pop("headers", {})
    return Answer(json.dumps({"error": {"message": message, **more}}).encode(), status, headers)


@contextmanager
def serving(script: Script) -> Iterator[LocalServer]:
    """Serves on a free port until the block ends."""
    lock = threading.Lock()
    in_flight = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal in_flight
            fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                in_flight += 1
                server.max_in_flight = max(server.max_in_flight, in_flight)
                server.requests.append(fields)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                server.times.append(time.monotonic())
                number = len(server.requests)
            answer = script(fields, number)
            with lock:
                in_flight -= 1
            self.reply(answer)

        def reply(self, answer: Answer) -> None:
            pieces, headers = answer.body, {"Connection": "close"}
            if isinstance(pieces, bytes):
                headers["Content-Length"] = str(len(pieces))
                pieces = iter([pieces])
            try:
                self.send_response(answer.status)
                for name, value in (headers | answer.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in pieces:
                    self.wfile.write(piece)
            except OSError:
                pass  # the client has disconnected, as some tests expect
            self.close_connection = True

        def log_message(self, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *args: Any) -> None:
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    server = LocalServer(f"http://127.0.0.1:{http.server_port}/v1")
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
