"""Tests of optional packages: each runs where its package is, which is an environment of its own.

`make test-packages` puts every package into a folder beside the core environment and runs its tests there; elsewhere
they skip.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.pool import recipe


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that takes 0.15 s a clip, so that there is something to interrupt."""
    return recipe(tmp_path_factory.mktemp("slow"), detector={"use": "./stages.py:Slow"})
