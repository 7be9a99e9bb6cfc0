"""Checks every pinned version against the advisory database: `make audit`.

Exit codes: 0 no known vulnerability; 1 vulnerabilities, each with the version that fixes it; 3 the database is not
reachable, so the result is unknown.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

UNKNOWN = 3
CONSTRAINTS = (Path("constraints.txt"), Path(".ci/release.txt"), Path(".ci/quality.txt"), Path(".ci/timm.txt"))


def main(pip_audit: str) -> int:
    """Audit all constraints files with this program and return the exit code."""
    packages = [package for path in CONSTRAINTS for package in run_pip_audit(pip_audit, path)]
    code, message = summarize(packages)
    print(message)
    return code


def run_pip_audit(pip_audit: str, path: Path) -> list[dict[str, Any]]:
    """Return pip-audit's entry of each package in a file; empty if it fails."""
    command = [pip_audit, "--requirement", str(path), "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return []
    return packages


def summarize(packages: list[dict[str, Any]]) -> tuple[int, str]:
    """Return exit code and message. A skipped package makes the result unknown."""
    audited = [package for package in packages if "skip_reason" not in package]
    lines = list(vulnerabilities(audited))
    if lines:
        return 1, "\n".join(lines)
    if not packages or len(audited) < len(packages):
        names = ", ".join(package["name"] for package in packages if "skip_reason" in package)
        missing = names if audited else "any package; check the network"
        return UNKNOWN, f"The advisory database has no answer for {missing}"
    return 0, f"No known vulnerability in the {len(audited)} pinned packages."


def vulnerabilities(packages: list[dict[str, Any]]) -> Iterator[str]:
    """Yield one line per known vulnerability."""
    for package in packages:
        for entry in package.get("vulns", []):
            fixed = ", ".join(entry.get("fix_versions", [])) or "no version yet"
            yield f"{package['name']} {package['version']}: {entry['id']}, fixed in {fixed}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
