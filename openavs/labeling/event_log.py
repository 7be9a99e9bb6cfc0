"""Side logs: everything that differs from run to run. `OUT/log` holds one file per process; nothing of it is hashed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def now() -> str:
    """The time as ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def append(out: Path, kind: str, event: dict[str, Any]) -> None:
    """Adds a line to this process's log of that kind: `OUT/log/<kind>-<host>-<pid>.jsonl`."""
    path = log_path(out, kind, ".jsonl")
    with path.open("a", encoding="ascii") as file:
        file.write(json.dumps({"time": now(), **event}) + "\n")


def log_path(out: Path, kind: str, suffix: str) -> Path:
    """The log of this process; its folder is made."""
    folder = out / "log"
    folder.mkdir(exist_ok=True)
    host = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in socket.gethostname())
    return folder / f"{kind}-{host}-{os.getpid()}{suffix}"


def clip_events(out: Path) -> Iterator[dict[str, Any]]:
    """All that workers have noted of clips, in no order; a line that was cut short is left out."""
    for path in sorted((out / "log").glob("clips-*.jsonl")):
        with path.open(encoding="ascii", errors="replace") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue
