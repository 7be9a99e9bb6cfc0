"""How long each clip of a committed shard took: `OUT/log/seconds/<shard>.json`.

Durations differ from run to run, so they lie with the logs and in the index, and in nothing that is hashed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from openavs.utils.durable import write_hashed
from openavs.utils.fs import read_regular
from openavs.utils.strict_json import parse_json


def save_seconds(out: Path, shard: int, seconds: Mapping[str, float]) -> None:
    """Writes the wall seconds of a shard's clips."""
    write_hashed(_path(out, shard), json.dumps(dict(sorted(seconds.items()))).encode("ascii"))


def read_seconds(out: Path, shard: int) -> dict[str, float]:
    """Wall seconds by clip id; empty where the log was removed or damaged, which costs nothing but this column."""
    try:
        found = parse_json(read_regular(_path(out, shard)))
    except (FileNotFoundError, ValueError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {clip: seconds for clip, seconds in items if isinstance(seconds, float)}


def _path(out: Path, shard: int) -> Path:
    return out / "log" / "seconds" / f"{shard:06d}.json"
