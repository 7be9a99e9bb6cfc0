"""The packages of other systems in the comparison, with small networks: `make test-peers`; elsewhere they skip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sam2", reason="the packages of other systems are not installed: make test-peers")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")]

COMMON = ("--peers", "real", "--frames", "1", "--repeats", "1", "--workloads", "standard")
PARTS = ("--only", "ratios", "agreement")
PHRASES, BOXES = 3, 2


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("compare_systems")


def measure(script: Any, folder: Path, *words: str) -> dict[str, Any]:
    figures: dict[str, Any] = script.measure(script.parse_options([*COMMON, *PARTS, *words]), folder)
    return figures


def test_sam2_computes_the_masks_of_its_imitation(script: Any, tmp_path: Path) -> None:
    packages = ("sam2_package_fp32", "sam2_package_bf16", "sam2_package_local")
    figures = measure(script, tmp_path, "--systems", *packages, "grounded_sam2_fp32", "grounded_sam2_bf16")
    assert figures["segmenter"] == "sam2"
    for name in packages:
        assert figures[f"ratio.{name}"] > 0 and figures[f"peak_mb.{name}"] > 0
        counts = [figures[f"work.{name}.{kind}"] for kind in ("detections", "encodings", "decodings")]
        assert counts == [1, 1, PHRASES * BOXES]
    assert figures["imitation.agreement.sam2_package_fp32"] > 0.998
    assert figures["agreement.sam2_package_fp32"] > 0.98  # openavs resizes frames otherwise
    assert figures["agreement.sam2_package_local.same_boxes_share"] > 0.8  # rf-groundingdino finds the same boxes
    assert 0.2 < figures["imitation.sam2_package_bf16"] < 5


def test_autodistill_runs_with_its_own_detector_and_segmenter(script: Any, tmp_path: Path) -> None:
    figures = measure(script, tmp_path, "--segmenter", "sam", "--systems", "autodistill_package", "hf_pipeline")
    kinds = ("detections", "encodings", "decodings.calls")
    assert [figures[f"work.autodistill_package.{kind}"] for kind in kinds] == [PHRASES, 1, PHRASES * BOXES]
    assert figures["agreement.autodistill_package.same_boxes_share"] > 0.8
    assert "imitation.autodistill_package" in figures
