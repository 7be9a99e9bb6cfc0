"""A file that hostile code would write, and a short video to run the command line on."""

from __future__ import annotations

from pathlib import Path

import pytest

from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that exists once somebody's code has run."""
    return tmp_path / "ran"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "dog.mp4"
    write_clip(path, plan_scene([Role("dog", (True, True))], scene_rng("test", 40), 2, (96, 128)), fps=4)
    return path
