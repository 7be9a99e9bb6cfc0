"""Peak memory of `openavs segment` on a short and on a long video of the synthetic world, and their ratio.

    python eval/memory.py --json

Memory must be bounded by the batch and not by the length of the video: ten minutes may take 1.3 times what one minute
takes. Every measurement is a fresh process, and so is the writing of the videos, because a process on Linux starts
with the peak of the one that started it: this script itself stays small and imports nothing of the package. With
`--keep DIR` the videos and results stay there, and videos that are there already are not written again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = {60: "one_minute_mb", 600: "ten_minutes_mb"}  # the others are seconds_N_mb


def openavs(*words: str | Path) -> float:
    """Runs a command to its end and returns its peak memory in MB (2**20 bytes); what it says goes to stderr."""
    child = subprocess.Popen([sys.executable, "-m", "openavs", *map(str, words)], stdout=sys.stderr)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"`openavs {' '.join(map(str, words))}` failed with exit code {child.returncode}")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(folder: Path, seconds: int, options: argparse.Namespace) -> float:
    """Writes a video of that length and segments it; MB."""
    video = folder / f"{seconds}s.mp4"
    if not video.exists():
        part = folder / f"part-{seconds}s.mp4"
        form = ("--size", options.size, "--seconds", str(seconds), "--fps", options.fps)
        openavs("synth", "clip", "--out", part, "--overwrite", *form)
        part.rename(video)
    words = [
        "segment",
        video,
        "--quiet",
        "--pipeline",
        options.pipeline,
        "--out",
        folder / "out",
        "--overwrite",
        *options.set,
    ]
    return openavs(*words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs=2, default=[60, 600], metavar="SECONDS", help="short and long")
    parser.add_argument("--size", default="1280x720", metavar="WIDTHxHEIGHT")
    parser.add_argument("--fps", type=float, default=4.0, help="of the videos; one frame a second is looked at")
    parser.add_argument("--pipeline", default="tiny", help="a recipe")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for the videos and the results")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as passing:
        folder = options.keep or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        short, long = (measure(folder, seconds, options) for seconds in options.lengths)
    figures = zip(options.lengths, (short, long), strict=True)
    answer = {NAMES.get(seconds, f"seconds_{seconds}_mb"): round(mb, 1) for seconds, mb in figures}
    answer |= {"ratio": round(long / short, 3), "seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(answer, indent=2) if options.json else ", ".join(f"{k} {v}" for k, v in answer.items()))


if __name__ == "__main__":
    main()
