from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openavs.structures.types import ImageArray
from tests.tiny_detectors import save_grounding_dino, save_omdet_turbo, save_owlv2


@pytest.fixture(scope="session")
def grounding_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Grounding DINO whose frames are 96 to 160 pixels."""
    return save_grounding_dino(tmp_path_factory.mktemp("grounding-dino"))


@pytest.fixture(scope="session")
def mm_grounding_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_grounding_dino(tmp_path_factory.mktemp("mm-grounding-dino"), mm=True)


@pytest.fixture(scope="session")
def owlv2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random OWLv2 of 96 x 96 pixels and 36 queries."""
    return save_owlv2(tmp_path_factory.mktemp("owlv2"))


@pytest.fixture(scope="session")
def omdet_turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random OmDet-Turbo of 64 x 64 pixels and 20 queries."""
    return save_omdet_turbo(tmp_path_factory.mktemp("omdet-turbo"))


@pytest.fixture
def picture() -> ImageArray:
    return noise(120, 200, seed=1)


def noise(height: int, width: int, seed: int = 0) -> ImageArray:
    """Blocks of random colors, so that neighboring pixels are similar as in a photo."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])
