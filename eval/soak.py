"""The page and label jobs under load for a while: what grows, what is left behind, who was answered.

    python eval/soak.py --minutes 30 --json

`openavs serve` with `tiny` has `--users` visitors that ask for a clip again and again through its API (each with
another threshold, so that no answer is a repeated one) while `openavs label` works a pool off into new folders, again
and again. At the beginning `--burst` visitors come at once.

Of the server, every two seconds: resident memory, open descriptors, threads, processes below it. `growth` is the median
of the last third over that of the first third (the first tenth, in which everything is loaded, left out); of the jobs,
the peak memory of each: the last over the first. At the end the server is interrupted: `orphans` counts the processes
that outlive it, `left` what stays of its folder. Linux; the extra `web`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLE = 2.0  # s
QUEUE = 8
FULL = re.compile(r"queue is full|too many|busy|turned away", re.IGNORECASE)


@dataclass
class Server:
    """`openavs serve` in a process of its own, its files below `folder`."""

    folder: Path
    process: subprocess.Popen[str] = field(init=False)
    address: str = field(init=False)

    def __post_init__(self) -> None:
        command = [
            sys.executable,
            "-m",
            "openavs",
            "serve",
            "--port",
            "0",
            "--pipeline",
            "tiny",
            "--queue",
            str(QUEUE),
            "--offline",
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(self.folder)}
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[1]

    def sample(self) -> dict[str, int]:
        """What it holds now."""
        place = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        return {
            "kB": int(status["VmRSS"].split()[0]),
            "descriptors": len(list((place / "fd").iterdir())),
            "threads": int(status["Threads"]),
            "processes": len(below(self.process.pid)),
        }

    def end(self) -> dict[str, Any]:
        """Interrupts it; what outlives it, and what is left of its files."""
        children = below(self.process.pid)
        self.process.send_signal(signal.SIGINT)
        started = time.monotonic()
        code = self.process.wait(timeout=60)
        left = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]
        orphans = [pid for pid in children if Path(f"/proc/{pid}").exists()]
        return {
            "exit": code,
            "seconds": round(time.monotonic() - started, 1),
            "orphans": len(orphans),
            "left": len(left),
            "left_files": left[:5],
        }


def below(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):  # one that ends meanwhile
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that does
                for child in map(int, (task / "children").read_text().split()):
                    found += [child, *below(child)]
    return found


class Visitors:
    """Ask for clips through the page's API, and count how they fare."""

    def __init__(self, address: str, video: Path) -> None:
        self.address, self.video = address, video
        self.counts: Counter[str] = Counter()
        self.waited: list[float] = []
        self.unexpected: list[str] = []

    def ask(self, number: int) -> None:
        """One visit: a client of its own, one question."""
        from gradio_client import Client, handle_file

        started = time.monotonic()
        try:
            threshold = random.Random(number).uniform(0.1, 0.3)
            with tempfile.TemporaryDirectory() as got:
                client = Client(
                    self.address,
                    verbose=False,
                    analytics_enabled=False,
                    download_files=got,
                    httpx_kwargs={"timeout": 120},
                )  # a visitor has patience, on a machine that is busy with other things, too
                data = client.predict(handle_file(self.video), threshold=threshold, api_name="/segment")[0]
        except Exception as problem:  # noqa: BLE001 - counted by what it says; the report shows what was not foreseen
            kind = "turned away" if FULL.search(str(problem)) else "failed"
            if kind == "failed":
                self.unexpected.append(f"{type(problem).__name__}: {problem}")
        else:
            kind = "answered" if data["frames"] else "empty"
            self.waited.append(time.monotonic() - started)
        self.counts[kind] += 1

    def figures(self) -> dict[str, Any]:
        return {
            **dict(self.counts),
            "median_s": round(statistics.median(self.waited), 1) if self.waited else None,
            "longest_s": round(max(self.waited), 1) if self.waited else None,
            "unexpected": self.unexpected[:5],
        }


def jobs(pool: Path, folder: Path, until: float) -> list[dict[str, Any]]:
    """Label jobs one after another; the peak memory of each, its workers included, and how it ended."""
    ended: list[dict[str, Any]] = []
    while time.monotonic() < until:
        out = folder / f"job{len(ended):04}"
        command = [sys.executable, "-m", "openavs", "label", pool, "--pipeline", "tiny", "--out", out, "--no-cache"]
        process = subprocess.Popen([*map(str, command), "--workers", "1", "-q"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        done = len(list(out.glob("clips/*/result.json")))
        ended.append({"code": process.returncode, "clips": done, "kB": usage.ru_maxrss})
    return ended


def growth(samples: list[dict[str, int]]) -> dict[str, float]:
    """Last third over first third, by median."""
    settled = samples[len(samples) // 10 :]
    third = max(1, len(settled) // 3)
    return {
        name: round(
            statistics.median(s[name] for s in settled[-third:])
            / max(1, statistics.median(s[name] for s in settled[:third])),
            3,
        )
        for name in settled[0]
    }


def soak(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    from openavs.synthetic.datasets import write_layout

    write_layout("s4", folder / "world", {"test": 6}, seed=77)
    subprocess.run(
        [sys.executable, "-m", "openavs", "demo", "--out", folder / "demo", "-q"], check=True, stdout=subprocess.DEVNULL
    )
    places = folder / "server"
    places.mkdir()
    server = Server(places)
    video = folder / "demo/scene.mp4"
    burst, visitors = Visitors(server.address, video), Visitors(server.address, video)
    with ThreadPoolExecutor(options.burst) as crowd:
        list(crowd.map(burst.ask, range(options.burst)))

    until = time.monotonic() + 60 * options.minutes
    samples: list[dict[str, int]] = []

    def visit(user: int) -> None:
        number = user
        while time.monotonic() < until:
            visitors.ask(number)
            number += options.users

    ended: list[dict[str, Any]] = []
    threads = [threading.Thread(target=visit, args=(user,), daemon=True) for user in range(options.users)]
    threads.append(threading.Thread(target=lambda: ended.extend(jobs(folder / "world", folder, until)), daemon=True))
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        samples.append(server.sample())
        time.sleep(SAMPLE)
    return {
        "minutes": options.minutes,
        "burst": {"users": options.burst, **burst.figures()},
        "page": {"users": options.users, **visitors.figures()},
        "server": {"first": samples[0], "last": samples[-1], "growth": growth(samples)},
        "jobs": {
            "jobs": len(ended),
            "clips": sum(job["clips"] for job in ended),
            "codes": sorted({job["code"] for job in ended}),
            "growth": round(ended[-1]["kB"] / ended[0]["kB"], 3),
        },
        "end": server.end(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--users", type=int, default=3, help="visitors that come again and again")
    parser.add_argument("--burst", type=int, default=20, help="visitors that come at once, at the beginning")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="openavs-soak-") as folder:
        tempfile.tempdir = str(Path(folder) / "visitors")  # whose clients leave an empty folder for each answer
        Path(tempfile.tempdir).mkdir()
        figures = soak(Path(folder), options)
    print(json.dumps(figures, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
