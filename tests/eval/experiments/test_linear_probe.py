"""The linear classifier on audio features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("linear_probe")


def test_classifier_separates_clusters_but_not_noise(script: Any) -> None:
    torch.manual_seed(1)
    labels, centers = torch.arange(400) % 4, 8 * torch.randn(4, 128)
    clear, noise = centers[labels] + torch.randn(400, 128), torch.randn(400, 128)
    for features, least, most in ((clear, 0.95, 1.0), (noise, 0.0, 0.5)):
        classifier = script.train_classifier(features[:200], labels[:200], 4)
        accuracy = float((classifier(features[200:]).argmax(1) == labels[200:]).double().mean())
        assert least <= accuracy <= most
