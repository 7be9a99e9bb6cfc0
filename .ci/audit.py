"""Asks the advisory database about every pinned version: `make audit`.

Exit codes: 0 nothing known against any of them; 1 some have known vulnerabilities, each named with the version that
mends it; 3 the database could not be asked, so nothing is known.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNASKED = 3
LISTS = (Path("constraints.txt"), Path(".ci/release.txt"), Path(".ci/quality.txt"))


def main(pip_audit: str) -> int:
    """Audits the lists with the program given; returns the exit code."""
    packages = [package for pins in LISTS for package in ask(pip_audit, pins)]
    code, says = verdict(packages)
    print(says)
    return code


def ask(pip_audit: str, pins: Path) -> list[dict[str, Any]]:
    """What pip-audit says of each package of a list; empty where it could not ask at all."""
    command = [pip_audit, "--requirement", str(pins), "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return []
    return packages


def verdict(packages: list[dict[str, Any]]) -> tuple[int, str]:
    """The exit code and what to print. A package that nothing is known of counts as not asked about."""
    known = [package for package in packages if "skip_reason" not in package]
    bad = list(findings(known))
    if bad:
        return 1, "\n".join(bad)
    if not packages or len(known) < len(packages):
        names = ", ".join(package["name"] for package in packages if "skip_reason" in package)
        of = f"about {names}" if known else "at all; is there a network?"
        return UNASKED, f"The advisory database could not be asked {of}"
    return 0, f"No vulnerability is known of any of the {len(known)} pinned packages."


def findings(packages: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each known vulnerability."""
    for package in packages:
        for found in package.get("vulns", []):
            mended = ", ".join(found.get("fix_versions", [])) or "no version yet"
            yield f"{package['name']} {package['version']}: {found['id']}, mended in {mended}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
