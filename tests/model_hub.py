"""A model hub on this machine: a real HTTP server that answers as the hub does, for the real client."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

DATE = "2024-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class PullRequest:
    """An open pull request; `parent` is the commit that it changes, `commit` the one that it makes."""

    number: int
    author: str
    title: str
    parent: str
    commit: str
    files: dict[str, bytes]

    @property
    def revision(self) -> str:
        return f"refs/pr/{self.number}"


class Hub(BaseHTTPRequestHandler):
    """Answers the requests of a model hub's client for a few repositories."""

    files: dict[str, dict[str, bytes]]  # repository -> name -> content
    asked: list[str]
    commits: tuple[str, ...]  # of every repository; `main` stands at the last one
    pulls: dict[str, list[PullRequest]]  # by repository; none by default
    refusal: int = 0  # the status of every answer, if not 0
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]
        self.asked.append(f"{self.command} {'/'.join(parts)}")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if self.refusal:
            self.answer(self.refusal, b"")
        elif name == "org/gated":
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif name == "org/broken":
            self.answer(500, b"")
        elif name not in self.files:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif parts[0] != "api":
            content = self.files_at(name, parts[3])["/".join(parts[4:])]
            self.answer(200, content, {"ETag": f'"{digest(content)}"', "X-Repo-Commit": self.commit(name, parts[3])})
        elif parts[4] == "discussions":
            self.discussions(name)
        elif parts[4] == "commits":
            pull = self.pull(name, parts[5])
            history = [pull.commit, pull.parent] if pull else list(self.commits[::-1])
            rows = [{"id": id, "authors": [], "date": DATE, "title": "", "message": ""} for id in history]
            self.json(rows)
        elif parts[4] == "revision" and parts[5] not in ("main", *self.commits) and not self.pull(name, parts[5]):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif parts[4] == "revision":
            siblings = [{"rfilename": f} for f in self.files_at(name, parts[5])]
            self.json({"id": name, "sha": self.commit(name, parts[5]), "siblings": siblings})
        else:
            listing = self.files_at(name, parts[5]).items()
            self.json([{"type": "file", "path": f, "size": len(c), "oid": digest(c)} for f, c in listing])

    do_HEAD = do_GET

    def pull(self, name: str, revision: str) -> PullRequest | None:
        """The pull request that a revision names by its reference or its commit."""
        own = getattr(self, "pulls", {}).get(name, [])
        return next((pull for pull in own if revision in (pull.revision, pull.commit)), None)

    def files_at(self, name: str, revision: str) -> dict[str, bytes]:
        pull = self.pull(name, revision)
        return pull.files if pull else self.files[name]

    def commit(self, name: str, revision: str) -> str:
        if pull := self.pull(name, revision):
            return pull.commit
        return self.commits[-1] if revision == "main" else revision

    def discussions(self, name: str) -> None:
        rows = [
            {
                "title": pull.title,
                "num": pull.number,
                "author": {"name": pull.author},
                "createdAt": DATE,
                "status": "open",
                "repo": {"name": name, "type": "model"},
                "isPullRequest": True,
            }
            for pull in getattr(self, "pulls", {}).get(name, [])
        ]
        self.json({"discussions": rows, "count": len(rows), "start": 0})

    def json(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving() -> Iterator[str]:
    """Serves `Hub.files` and gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def client_settings(address: str, cache: Path, offline: bool = False) -> dict[str, str]:
    """The environment of a process that uses this hub: its client reads them when it is imported."""
    names = {"HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}
    clean = {key: value for key, value in os.environ.items() if key.upper() not in names}
    return clean | {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": str(int(offline))}
