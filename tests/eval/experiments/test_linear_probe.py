"""The probe of what students hear: it finds what is there, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("linear_probe")


def test_the_probe_tells_sounds_apart_that_differ_and_no_others(script: Any) -> None:
    torch.manual_seed(1)
    which, centres = torch.arange(400) % 4, 8 * torch.randn(4, 128)
    clear, noise = centres[which] + torch.randn(400, 128), torch.randn(400, 128)
    for features, least, most in ((clear, 0.95, 1.0), (noise, 0.0, 0.5)):
        probe = script.trained(features[:200], which[:200], 4)
        right = float((probe(features[200:]).argmax(1) == which[200:]).double().mean())
        assert least <= right <= most
