"""The comparison of optimized modules: outputs agree, and large gains remain; paired ratios, never seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_script("optimized_modules")
    torch.set_num_threads(threads)


def measure(script: Any, part: str, folder: Path, repeats: int) -> dict[str, Any]:
    size = script.SIZES["reduced"]
    variants = script.PARTS[part](folder, size, np.zeros((*size.image, 3), dtype=np.uint8))
    figures: dict[str, Any] = script.compare(variants, repeats)
    return figures


@pytest.mark.parametrize("part", ["deformable", "fusion"])
def test_one_layer_is_several_times_as_fast(script: Any, part: str, tmp_path: Path) -> None:
    figures = measure(script, part, tmp_path, repeats=3)
    assert figures["error"]["ours"] < 1e-5
    assert figures["ratio"]["ours"] > 2


def test_linear_layers_agree_in_both_precisions(script: Any, tmp_path: Path) -> None:
    error = measure(script, "linear", tmp_path, repeats=1)["error"]
    assert error["ours"] < 1e-5 and error["ours_bfloat16"] < 1.1 * error["library_bfloat16"] < 0.01
