"""Logs of a job: what differs from run to run. `OUT/log` holds one file per process; they are not hashed."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def now() -> str:
    """Return the time as ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def append(out: Path, kind: str, event: dict[str, Any]) -> None:
    """Append a line to this process's log of that kind: `OUT/log/<kind>-<host>-<pid>.jsonl`."""
    path = log_path(out, kind, ".jsonl")
    with path.open("a", encoding="ascii") as file:
        file.write(json.dumps({"time": now(), **event}) + "\n")


def log_path(out: Path, kind: str, suffix: str) -> Path:
    """Return the path of this process's log; its folder is made."""
    folder = out / "log"
    folder.mkdir(exist_ok=True)
    host = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in socket.gethostname())
    return folder / f"{kind}-{host}-{os.getpid()}{suffix}"


def clip_events(out: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of all clips from the logs of all workers, in no order; malformed lines are skipped."""
    for path in sorted((out / "log").glob("clips-*.jsonl")):
        with path.open(encoding="ascii", errors="replace") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except ValueError:
                    continue


@dataclass(frozen=True)
class StageTimes:
    """Seconds over all finished `clips`: in all and by stage; the rest is opening and writing."""

    clips: int
    seconds: float
    stages: dict[str, float]


def stage_times(out: Path) -> StageTimes:
    """Sum the logs of a result folder."""
    clips, seconds = 0, 0.0
    stages: Counter[str] = Counter()
    for event in clip_events(out):
        clips, seconds = clips + 1, seconds + event["seconds"]
        stages.update(event["timings"])
    return StageTimes(clips, round(seconds, 3), {stage: round(spent, 3) for stage, spent in stages.most_common()})
