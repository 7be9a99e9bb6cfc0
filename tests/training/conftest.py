"""Fixtures of the student tests: small synthetic data sets and a small VGGish."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from openavs.synthetic.datasets import write_layout
from openavs.training.models.backbones import Vggish, VggishConfig, save_vggish


@pytest.fixture(scope="session")
def s4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training, two validation and two test clips in the layout of S4."""
    root = tmp_path_factory.mktemp("world") / "s4"
    write_layout("s4", root, {"train": 4, "val": 2, "test": 2}, seed=900)
    return root


@pytest.fixture(scope="session")
def avss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training clips of five and ten frames in the layout of AVSBench-semantic."""
    root = tmp_path_factory.mktemp("world") / "avss"
    write_layout("avss", root, {"train": 5, "val": 2}, seed=900)
    return root


@pytest.fixture(scope="session")
def vggish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VGGish with a sixteenth of the width and random weights."""
    folder = tmp_path_factory.mktemp("models") / "vggish"
    torch.manual_seed(0)
    save_vggish(Vggish(VggishConfig(width=4, hidden=32)), folder)
    return folder
