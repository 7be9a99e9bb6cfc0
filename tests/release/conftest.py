"""The output of `make test-wheel`, and the new environment with the installed wheel."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT


@dataclass(frozen=True)
class Installation:
    """An environment with the wheel and its dependencies, used from a directory outside the checkout."""

    folder: Path
    cwd: Path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, without variables that point to the checkout."""
        program = self.folder / "bin" / str(command[0])
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        words = [str(program), *map(str, command[1:])]
        return subprocess.run(words, capture_output=True, text=True, cwd=self.cwd, env=kept, timeout=300)


@pytest.fixture(scope="session")
def clean() -> Path:
    """Return the folder of the new environment; tests of this directory are skipped without it."""
    folder = os.environ.get("OPENAVS_CLEAN")
    if not folder:
        pytest.skip("make test-wheel builds and installs the wheel for this test")
    return Path(folder)


@pytest.fixture(scope="session")
def dist(clean: Path) -> Path:
    """Return the folder with the sdist and the wheel."""
    return ROOT / "dist"


@pytest.fixture
def installation(clean: Path, tmp_path: Path) -> Installation:
    return Installation(clean, tmp_path)
