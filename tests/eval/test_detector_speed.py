"""The bench of the adapters' networks: answers agree, and what won by far still wins; ratios of turns, no seconds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def bench() -> Any:
    folder = str(ROOT / "eval" / "speed")
    sys.path.insert(0, folder)
    import detector

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield detector
    torch.set_num_threads(threads)
    sys.path.remove(folder)


def figures(bench: Any, part: str, folder: Path, repeats: int) -> dict[str, Any]:
    size = bench.SIZES["reduced"]
    found: dict[str, Any] = bench.compare(
        bench.PARTS[part](folder, size, np.zeros((*size.picture, 3), dtype=np.uint8)), repeats
    )
    return found


@pytest.mark.parametrize("part", ["deformable", "fusion"])
def test_one_layer_is_several_times_as_fast(bench: Any, part: str, tmp_path: Path) -> None:
    found = figures(bench, part, tmp_path, repeats=3)
    assert found["error"]["ours"] < 1e-5
    assert found["ratio"]["ours"] > 2


def test_linear_layers_agree_in_both_precisions(bench: Any, tmp_path: Path) -> None:
    error = figures(bench, "linear", tmp_path, repeats=1)["error"]
    assert error["ours"] < 1e-5 and error["ours_bfloat16"] < 1.1 * error["library_bfloat16"] < 0.01
