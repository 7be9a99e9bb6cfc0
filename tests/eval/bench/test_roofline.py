"""The lower bounds: counts of known networks, and the committed table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def roofline(load_script: Callable[[str], Any]) -> Any:
    return load_script("roofline")


def test_matrix_product_has_the_known_count(roofline: Any) -> None:
    with torch.device("meta"):
        found = roofline.cost(torch.nn.Linear(30, 20, bias=False), lambda m: m(torch.zeros(10, 30)))
    assert found.flop == 2 * 10 * 30 * 20
    assert found.parameters == 600
    assert found.traffic >= 10 * 30 + 600 + 10 * 20


def test_views_have_no_traffic(roofline: Any) -> None:
    with torch.device("meta"):
        made = roofline.cost(torch.nn.Identity(), lambda m: m(torch.zeros(6, 4)))
        seen = roofline.cost(torch.nn.Identity(), lambda m: m(torch.zeros(6, 4)).T[1:][0].view(2, 3))
        copied = roofline.cost(torch.nn.Identity(), lambda m: m(torch.zeros(6, 4)).T[1:].contiguous())
    assert (made.traffic, seen.traffic, copied.traffic) == (24, 24, 24 + 18 + 18)


@pytest.mark.parametrize(
    ("network", "size", "gflop"),
    [("sam", "base", 972), ("sam2", "tiny", 293)],
)
def test_counts_agree_with_published_ones(roofline: Any, network: str, size: str, gflop: float) -> None:
    """An encoder, and four boxes of 14 GFLOP; the page has SAM ViT-H (2,973 GMAC) and others."""
    found = getattr(roofline, network)(size, 4).flop / 1e9
    assert found - 14.4 == pytest.approx(gflop, rel=0.01)


def test_committed_table_has_the_counts(roofline: Any) -> None:
    """Compares the row of one recipe; `python eval/bench/roofline.py --write` rewrites all of them."""
    devices = (roofline.H200, roofline.CPU_FP32, roofline.CPU_BF16)
    row = f"| {' | '.join(roofline.as_cells(roofline.row('openavs-cpu', devices)))} |"
    assert row in roofline.PAGE.read_text(encoding="utf-8").splitlines()


def test_table_is_written_between_its_markers(roofline: Any) -> None:
    page = "one\n<!-- roofline -->\nold\n<!-- /roofline -->\ntwo\n"
    assert roofline.in_page(page, "new") == "one\n<!-- roofline -->\nnew\n<!-- /roofline -->\ntwo\n"


def test_operations_or_bytes_set_the_lower_bound(roofline: Any) -> None:
    device = roofline.Device("test", 100.0, 10.0, 2)
    assert device.lower_bound(roofline.Cost(1000.0, 0.0, 1.0)) == 10.0
    assert device.lower_bound(roofline.Cost(10.0, 0.0, 50.0)) == 10.0
