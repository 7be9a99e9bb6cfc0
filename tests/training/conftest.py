"""Fixtures of the students' tests: a small synthetic data set and a small VGGish, written once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from openavs.synthetic.datasets import write_layout
from openavs.training.models.vggish import Vggish, VggishConfig, save_vggish


@pytest.fixture(scope="session")
def s4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training clips, two to validate on and two to test on, in S4's layout."""
    root = tmp_path_factory.mktemp("world") / "s4"
    write_layout("s4", root, {"train": 4, "val": 2, "test": 2}, seed=900)
    return root


@pytest.fixture(scope="session")
def avss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training clips of five and ten frames in AVSBench-semantic's layout."""
    root = tmp_path_factory.mktemp("world") / "avss"
    write_layout("avss", root, {"train": 5, "val": 2}, seed=900)
    return root


@pytest.fixture(scope="session")
def vggish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VGGish of a sixteenth of the width, with random weights."""
    folder = tmp_path_factory.mktemp("models") / "vggish"
    torch.manual_seed(0)
    save_vggish(Vggish(VggishConfig(width=4, hidden=32)), folder)
    return folder
