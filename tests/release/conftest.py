"""What `make test-wheel` built, and the new environment that it installed the wheel into."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT


@dataclass(frozen=True)
class Installation:
    """An environment that holds the wheel and what it requires, used from a directory that is not the checkout."""

    folder: Path
    cwd: Path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment; nothing of this one's variables leads back to the checkout."""
        program = self.folder / "bin" / str(command[0])
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        words = [str(program), *map(str, command[1:])]
        return subprocess.run(words, capture_output=True, text=True, cwd=self.cwd, env=kept, timeout=300)


@pytest.fixture(scope="session")
def clean() -> Path:
    """The new environment's folder; tests of this directory skip without it."""
    folder = os.environ.get("OPENAVS_CLEAN")
    if not folder:
        pytest.skip("make test-wheel builds and installs the wheel that this looks at")
    return Path(folder)


@pytest.fixture(scope="session")
def dist(clean: Path) -> Path:
    """The folder with the sdist and the wheel."""
    return ROOT / "dist"


@pytest.fixture
def installation(clean: Path, tmp_path: Path) -> Installation:
    return Installation(clean, tmp_path)
