"""The roofline: counts of known networks, and that the committed page says what is counted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch

from tests.conftest import ROOT

SPEED = ROOT / "eval" / "speed"


@pytest.fixture(scope="module")
def roofline() -> Iterator[Any]:
    sys.path.insert(0, str(SPEED))
    yield import_module("roofline")
    sys.path.remove(str(SPEED))


def test_a_product_of_matrices_is_counted_as_on_paper(roofline: Any) -> None:
    with torch.device("meta"):
        found = roofline.net.cost(torch.nn.Linear(30, 20, bias=False), lambda m: m(torch.zeros(10, 30)))
    assert found.flop == 2 * 10 * 30 * 20
    assert found.parameters == 600
    assert found.traffic >= 10 * 30 + 600 + 10 * 20


def test_views_move_nothing(roofline: Any) -> None:
    with torch.device("meta"):
        made = roofline.net.cost(torch.nn.Identity(), lambda m: m(torch.zeros(6, 4)))
        seen = roofline.net.cost(torch.nn.Identity(), lambda m: m(torch.zeros(6, 4)).T[1:][0].view(2, 3))
        copied = roofline.net.cost(torch.nn.Identity(), lambda m: m(torch.zeros(6, 4)).T[1:].contiguous())
    assert (made.traffic, seen.traffic, copied.traffic) == (24, 24, 24 + 18 + 18)


@pytest.mark.parametrize(
    ("network", "size", "gflop"),
    [("sam", "base", 972), ("sam2", "tiny", 293)],
)
def test_counts_agree_with_published_ones(roofline: Any, network: str, size: str, gflop: float) -> None:
    """An encoder and four boxes, of 14 GFLOP; SAM ViT-H's 2,973 GMAC and others are on the page."""
    found = getattr(roofline.net, network)(size, 4).flop / 1e9
    assert found - 14.4 == pytest.approx(gflop, rel=0.01)


def test_the_page_says_what_is_counted(roofline: Any) -> None:
    """The row of one recipe; `python eval/speed/roofline.py --write` renews them all."""
    devices = (roofline.H200, roofline.CPU_FP32, roofline.CPU_BF16)
    row = f"| {' | '.join(roofline.as_cells(roofline.row('openavs-cpu', devices)))} |"
    assert row in roofline.PAGE.read_text(encoding="utf-8").splitlines()


def test_the_table_goes_between_its_markers(roofline: Any) -> None:
    page = "one\n<!-- roofline -->\nold\n<!-- /roofline -->\ntwo\n"
    assert roofline.in_page(page, "new") == "one\n<!-- roofline -->\nnew\n<!-- /roofline -->\ntwo\n"


def test_a_floor_is_set_by_operations_or_by_bytes(roofline: Any) -> None:
    device = roofline.Device("test", 100.0, 10.0, 2)
    assert device.floor(roofline.Cost(1000.0, 0.0, 1.0)) == 10.0
    assert device.floor(roofline.Cost(10.0, 0.0, 50.0)) == 10.0
