"""Fuzzes a reader under the guidance of coverage, as long as one likes.

    pip install atheris                     # Linux and macOS; no dependency of the tests
    python -m tests.robustness.fuzz.run answer --seconds 300
    python -m tests.robustness.fuzz.run --list

Findings are printed and kept as files `crash-*`; their bytes belong into `tests/robustness/fuzz/test_findings.py`.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path


def main() -> None:
    """Runs one target in a process whose files go when it ends: libFuzzer leaves without any good-bye."""
    given = _arguments()
    if given.within:
        fuzz(given, given.within)
        return
    with tempfile.TemporaryDirectory(prefix="openavs-fuzz-") as folder:
        (Path(folder) / "corpus").mkdir()
        command = [sys.executable, "-m", "tests.robustness.fuzz.run", *sys.argv[1:], "--within", folder]
        sys.exit(subprocess.run(command, env={**os.environ, "TMPDIR": folder}, check=False).returncode)


def fuzz(given: argparse.Namespace, folder: Path) -> None:
    """Runs it in this process."""
    import atheris

    with atheris.instrument_imports(include=["openavs", "yaml", "json", "csv", "tarfile", "pickle", "PIL"]):
        from tests.robustness.fuzz.targets import survives, targets
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    known = targets()
    if given.list or given.target not in known:
        print(*known, sep="\n")
        sys.exit(0 if given.list else 2)
    target = known[given.target]
    corpus = folder / "corpus"
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    limits = ["-timeout=20", "-rss_limit_mb=2500", "-max_len=20000", "-verbosity=1"]
    words = [sys.argv[0], str(corpus), f"-max_total_time={given.seconds}", *limits, "-print_final_stats=1"]
    atheris.Setup(words, lambda data: survives(target, data) and None)
    atheris.Fuzz()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="?", default="")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
