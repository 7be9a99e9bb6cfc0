"""Tries media files one after the other, each in a process of its own under limits, and says what became of it.

    python -m tests.media.attempts FOLDER SECONDS MEGABYTES

reads lines of JSON, `{"name": ..., "path": ..., "audio": ...}`, and answers each with one: `outcome` (`clip`,
`refused`, `crash`, `hang`), what it said, how many pictures and seconds of sound came, and what it cost.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.media.audio import read_audio
from openavs.media.clip import open_clip, probe
from openavs.media.encode import clip_audio, clip_images
from openavs.media.remux import write_overlay


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def use(path: str, audio: str | None, scratch: Path) -> dict[str, Any]:
    """Does with a file what the commands do: probe, open, decode, paint, cut out."""
    info = probe(path)
    clip = open_clip(path, audio=audio, fps=2.0)
    frames = 0
    for frame in clip.frames(None):
        assert frame.image.shape == (*clip.size, 3) and frame.image.dtype.name == "uint8"
        frames += 1
    painted = scratch / "overlay.mp4"
    if clip.size[0] * clip.size[1] <= 1 << 20:
        write_overlay(painted, clip, lambda time, image: image)
        painted.unlink()
        sum(1 for _ in zip(clip_images(clip), range(50), strict=False))
    clip_audio(clip)
    seconds = 0.0 if clip.audio is None else clip.audio.duration
    return {"frames": frames, "size": clip.size, "sound": seconds, "format": info.format, "notes": list(clip.warnings)}


def attempt(given: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """The outcome of one file, in this process."""
    said = _Said()
    logging.getLogger("openavs").addHandler(said)
    try:
        outcome = {"outcome": "clip", **use(given["path"], given.get("audio"), scratch)}
    except InputError as error:
        outcome = {"outcome": "refused", "said": str(error)}
        with contextlib.suppress(InputError):  # its sound may be read even so
            read_audio(given["path"])
    except BaseException:  # noqa: BLE001 - reported to the test
        outcome = {"outcome": "crash", "said": traceback.format_exc()}
    return {**outcome, "logged": said.lines}


def in_child(given: dict[str, Any], scratch: Path, seconds: float, megabytes: int) -> dict[str, Any]:
    """The same in a child with limits of time and memory; the signal that kills it is reported."""
    reader, writer = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20),) * 2)
        answer = attempt(given, scratch)
        answer["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    parts = []
    while part := os.read(reader, 1 << 16):
        parts.append(part)
    _, status = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.close(reader)
    took = round(time.monotonic() - began, 3)
    if not parts:
        outcome = "hang" if took >= seconds else "crash"
        return {"name": given["name"], "outcome": outcome, "said": f"status {status}", "seconds": took}
    return {"name": given["name"], **json.loads(b"".join(parts)), "seconds": took}


def main() -> None:
    """Answers line by line."""
    scratch, seconds, megabytes = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    base = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20
    for line in sys.stdin:
        print(json.dumps({"base": base, **in_child(json.loads(line), scratch, seconds, megabytes)}), flush=True)


if __name__ == "__main__":
    main()
