"""Shared by the benchmark scripts: options, alternating timings, child processes, and output.

This module imports neither torch nor openavs: on Linux a child process starts with the memory of its parent, so a
script that measures its children must be small when it starts them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parents[2]
MB = 2**20
T = TypeVar("T")


def use_one_thread() -> None:
    """Limit numeric libraries to one thread, here and in child processes; call before they are imported."""
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def argument_parser(description: str | None, repeats: int | None = None) -> argparse.ArgumentParser:
    """Create the parser of a script with `--json`, and with `--repeats` if its default is given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def print_figures(figures: Mapping[str, Any], as_json: bool) -> None:
    """Print figures as JSON, or one per line."""
    print(
        json.dumps(figures, indent=2) if as_json else "\n".join(f"{name}: {value}" for name, value in figures.items())
    )


@contextmanager
def working_folder(keep: Path | None = None) -> Iterator[Path]:
    """Yield the folder `keep`, created if it is missing, or a temporary folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


# ------------------------------------------------------------------------------------------------------------ timing


class Seconds(NamedTuple):
    """Seconds of a call, by the wall clock and of CPU time."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Seconds:
    """Call `work` and measure it."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def run_alternately(variants: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Call every variant once per repeat and collect the results.

    The order rotates from repeat to repeat, so that slow phases of the machine affect all variants.
    """
    results: dict[str, list[T]] = {name: [] for name in variants}
    names = list(variants)
    for repeat in range(repeats):
        shift = repeat % len(names)
        for name in names[shift:] + names[:shift]:
            results[name].append(variants[name]())
    return results


def time_alternately(variants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[Seconds]]:
    """Measure every variant once per repeat; see `run_alternately`."""
    return run_alternately({name: lambda work=work: timed(work) for name, work in variants.items()}, repeats)  # type: ignore[misc]


def ratios(numerators: Sequence[Any], denominators: Sequence[Any], clock: str = "cpu") -> list[float]:
    """Divide the seconds (`wall` or `cpu`) of one variant by those of another, repeat by repeat."""
    return [getattr(a, clock) / getattr(b, clock) for a, b in zip(numerators, denominators, strict=True)]


# --------------------------------------------------------------------------------------------------- child processes


@dataclass(frozen=True)
class ProcessUsage:
    """A finished child process: its output, seconds, and the peak of its resident memory in MB (2**20 bytes)."""

    output: str
    wall: float
    cpu: float
    peak_mb: float
    exit_code: int


def run_process(
    command: Sequence[object],
    *,
    exit_codes: Collection[int] = (0,),
    stderr: int | None = None,
    env: Mapping[str, str] | None = None,
) -> ProcessUsage:
    """Run a command to its end and measure it, its own children included.

    Args:
        command: the program and its arguments.
        exit_codes: the expected exit codes.
        stderr: `subprocess.STDOUT` collects stderr in the output, too.
        env: additional environment variables.

    Raises:
        SystemExit: the exit code is another one.
    """
    words = [str(word) for word in command]
    _reset_peak()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        environment = {**os.environ, "PYTHONPATH": path, **(env or {})}
        child = subprocess.Popen(words, stdout=output, stderr=stderr, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if child.returncode not in exit_codes:
        raise SystemExit(f"{' '.join(words)[:200]}: exit code {child.returncode}\n{text[-2000:]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MB
    return ProcessUsage(text, wall, usage.ru_utime + usage.ru_stime, peak, child.returncode)


def _reset_peak() -> None:
    """Reset the peak memory of this process to its current memory (Linux); a child process starts with that peak."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def run_openavs(*words: object, **options: Any) -> ProcessUsage:
    """Run an `openavs` command; see `run_process`."""
    return run_process([sys.executable, "-m", "openavs", *words], **options)


@contextmanager
def serve_tiny(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `openavs serve` with the recipe `tiny` on a free port; yield its process and address.

    Raises:
        RuntimeError: the server does not start.
    """
    command = [sys.executable, "-m", "openavs", "serve", "--port", "0", "--pipeline", "tiny", *options]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            address = re.search(r"http://\S+", line)
            if address is None:
                raise RuntimeError(f"the server did not start: {line or 'see the messages above'}")
            yield server, address[0]
        finally:
            server.terminate()
