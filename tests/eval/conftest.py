"""Makes the scripts of eval/ importable by name, as when they run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="session")
def load_script() -> Iterator[Callable[[str], Any]]:
    """Import a script by its name."""
    folders = [str(ROOT / "eval" / name) for name in ("bench", "experiments")]
    sys.path.extend(folders)
    yield import_module
    for folder in folders:
        sys.path.remove(folder)
