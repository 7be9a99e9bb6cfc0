"""The figure that chooses the best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openavs.evaluation.datasets.base import Dataset, Task
from openavs.training.trainer import selection_figure


def dataset(task: Task) -> Dataset:
    def unread(*_: Any) -> Any:
        raise AssertionError("no mask is read")

    return Dataset("any", task, Path(), "val", (), unread, unread)


@pytest.mark.parametrize(
    ("task", "figures", "chosen"),
    [
        ("binary", {"miou": 0.25, "f": 0.5}, 0.25),
        ("open-vocabulary", {"miou": 0.25, "base": 0.5, "novel": 0.1, "harmonic": 0.17}, 0.17),
        ("open-vocabulary", {"miou": 0.25, "base": 0.5, "novel": None, "harmonic": 0.0}, 0.25),
        ("open-vocabulary", {"miou": 0.25, "base": None, "novel": 0.5, "harmonic": 0.0}, 0.25),
    ],
)
def test_split_without_novel_classes_is_selected_by_mean_iou(
    task: Task, figures: dict[str, float | None], chosen: float
) -> None:
    assert selection_figure(dataset(task), figures) == chosen
