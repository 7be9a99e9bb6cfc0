"""Runs the web page and label jobs under load for a while and reports growth, leftovers and failures.

    python eval/bench/soak.py --minutes 30 --json

`--users` visitors of `openavs serve` with `tiny` segment a clip again and again through its API (each time with another
threshold, so that no output is cached) while `openavs label` processes a data set into new folders, again and again. At
the beginning `--burst` visitors come at once.

The server is sampled every two seconds: resident memory, open file descriptors, threads, child processes. `growth` is
the median of the last third over that of the first third, without the first tenth, in which models are loaded; of the
jobs, the peak memory of the last over that of the first. At the end the server is interrupted: `orphans` counts child
processes that outlive it, `left` the files that remain in its folder. Linux; requires the extra `web`.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import argument_parser, print_figures, run_openavs, serve_tiny, working_folder

SAMPLING_INTERVAL = 2.0  # seconds
QUEUE = 8
QUEUE_FULL = re.compile(r"queue is full|too many|busy|turned away", re.IGNORECASE)


def main() -> None:
    """Run the test and print its figures."""
    parser = argument_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--users", type=int, default=3, help="visitors that come again and again")
    parser.add_argument("--burst", type=int, default=20, help="visitors that come at once, at the beginning")
    options = parser.parse_args()
    with working_folder() as folder:
        tempfile.tempdir = str(folder / "visitors")  # API clients leave an empty folder there for each output
        Path(tempfile.tempdir).mkdir()
        figures = soak(folder, options)
    print_figures(figures, options.json)


def soak(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start the server, the visitors and the jobs, and return all figures."""
    world, demo, server_folder = folder / "world", folder / "demo", folder / "server"
    run_openavs("synth", "s4", "--out", world, "--train", 0, "--val", 0, "--clips", 6, "--seed", 77)
    run_openavs("demo", "--out", demo, "-q")
    server_folder.mkdir()
    with serve_tiny(server_folder, "--queue", str(QUEUE), "--offline") as (server, address):
        burst, visitors = Visitors(address, demo / "scene.mp4"), Visitors(address, demo / "scene.mp4")
        with ThreadPoolExecutor(options.burst) as crowd:
            list(crowd.map(burst.visit, range(options.burst)))
        until = time.monotonic() + 60 * options.minutes

        def visit(user: int) -> None:
            number = user
            while time.monotonic() < until:
                visitors.visit(number)
                number += options.users

        jobs: list[dict[str, Any]] = []
        threads = [threading.Thread(target=visit, args=(user,), daemon=True) for user in range(options.users)]
        threads.append(threading.Thread(target=run_jobs, args=(world, folder, until, jobs), daemon=True))
        for thread in threads:
            thread.start()
        samples = []
        while any(thread.is_alive() for thread in threads):
            samples.append(sample(server.pid))
            time.sleep(SAMPLING_INTERVAL)
        end = interrupt(server, server_folder)
    return {
        "minutes": options.minutes,
        "burst": {"users": options.burst, **burst.figures()},
        "page": {"users": options.users, **visitors.figures()},
        "server": {"first": samples[0], "last": samples[-1], "growth": growth(samples)},
        "jobs": {
            "jobs": len(jobs),
            "clips": sum(job["clips"] for job in jobs),
            "codes": sorted({job["code"] for job in jobs}),
            "growth": round(jobs[-1]["mb"] / jobs[0]["mb"], 3),
        },
        "end": end,
    }


class Visitors:
    """Sends clips through the API of the page and counts the outcomes."""

    def __init__(self, address: str, video: Path) -> None:
        self.address, self.video = address, video
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.unexpected: list[str] = []

    def visit(self, number: int) -> None:
        """Send one request with a new client."""
        from gradio_client import Client, handle_file

        started = time.monotonic()
        threshold = random.Random(number).uniform(0.1, 0.3)
        try:
            with tempfile.TemporaryDirectory() as folder:
                client = Client(
                    self.address,
                    verbose=False,
                    analytics_enabled=False,
                    download_files=folder,
                    httpx_kwargs={"timeout": 120},  # for busy machines
                )
                data = client.predict(handle_file(self.video), threshold=threshold, api_name="/segment")[0]
        except Exception as error:  # noqa: BLE001 - any failure of a visit is counted and reported
            outcome = "turned away" if QUEUE_FULL.search(str(error)) else "failed"
            if outcome == "failed":
                self.unexpected.append(f"{type(error).__name__}: {error}")
        else:
            outcome = "answered" if data["frames"] else "empty"
            self.seconds.append(time.monotonic() - started)
        self.counts[outcome] += 1

    def figures(self) -> dict[str, Any]:
        """Return the outcomes, and the seconds of the visits with an output."""
        return {
            **self.counts,
            "median_s": round(statistics.median(self.seconds), 1) if self.seconds else None,
            "longest_s": round(max(self.seconds), 1) if self.seconds else None,
            "unexpected": self.unexpected[:5],
        }


def run_jobs(data: Path, folder: Path, until: float, jobs: list[dict[str, Any]]) -> None:
    """Run label jobs one after another; append exit code, clips and peak memory of each, its workers included."""
    while time.monotonic() < until:
        out = folder / f"job{len(jobs):04}"
        words = ("label", data, "--pipeline", "tiny", "--out", out, "--no-cache", "--workers", "1", "-q")
        usage = run_openavs(*words, exit_codes=range(-64, 256))
        clips = len(list(out.glob("clips/*/result.json")))
        jobs.append({"code": usage.exit_code, "clips": clips, "mb": usage.peak_mb})


# ------------------------------------------------------------------------------------------------------------ server


def sample(pid: int) -> dict[str, int]:
    """Return the resources of a process."""
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return {
        "kB": int(status["VmRSS"].split()[0]),
        "descriptors": len(list((process / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "processes": len(descendants(pid)),
    }


def descendants(pid: int) -> list[int]:
    """Return the ids of all child processes and theirs."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):  # the process ended meanwhile
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(FileNotFoundError, ProcessLookupError):  # the thread did
                for child in map(int, (task / "children").read_text().split()):
                    found += [child, *descendants(child)]
    return found


def growth(samples: list[dict[str, int]]) -> dict[str, float]:
    """Return the medians of the last third of the samples over those of the first."""
    settled = samples[len(samples) // 10 :]
    third = max(1, len(settled) // 3)

    def middle(part: list[dict[str, int]], name: str) -> float:
        return statistics.median(sample[name] for sample in part)

    return {
        name: round(middle(settled[-third:], name) / max(1, middle(settled[:third], name)), 3) for name in settled[0]
    }


def interrupt(server: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """Interrupt the server and count the processes and files that remain."""
    children = descendants(server.pid)
    server.send_signal(signal.SIGINT)
    started = time.monotonic()
    code = server.wait(timeout=60)
    left = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {
        "exit": code,
        "seconds": round(time.monotonic() - started, 1),
        "orphans": sum(Path(f"/proc/{pid}").exists() for pid in children),
        "left": len(left),
        "left_files": left[:5],
    }


if __name__ == "__main__":
    main()
