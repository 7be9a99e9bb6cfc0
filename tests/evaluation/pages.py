"""A small data set with predictions and its report, for the tests of what shows reports."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, Masks, Task
from openavs.evaluation.datasets.tables import CLASSES
from openavs.evaluation.scorer import score

SIZE = (36, 48)


class Page(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def write_dataset(root: Path, clips: int, task: Task = "binary", benchmark: str = "s4") -> Dataset:
    """Clips of two frames with one square each, predicted further to the right from clip to clip."""
    found = []
    for number in range(clips):
        name = f"clip{number:03d}"
        truth, predicted = np.zeros(SIZE, dtype=np.uint8), np.zeros(SIZE, dtype=np.uint8)
        truth[8:28, 10:30], predicted[8:28, 10 + number % 18 : 30 + number % 18] = 1, 1
        value = 255 if task == "binary" else 17  # dog
        for k in range(2):
            _save(root / "frames" / name / f"{k}.png", np.full((*SIZE, 3), 60 + 40 * k, dtype=np.uint8))
            _save(root / "truth" / name / f"{k}.png", truth * value)
            _save(root / "predictions" / name / f"{k}.png", predicted * value)
        found.append(
            BenchmarkClip(
                name,
                "test",
                tuple(root / "frames" / name / f"{k}.png" for k in range(2)),
                root / f"{name}.wav",
                tuple(root / "truth" / name / f"{k}.png" for k in range(2)),
                tuple(f"{name}/{k}.png" for k in range(2)),
                group=f"group {number % 3}",
            )
        )

    def read_truth(clip: BenchmarkClip) -> Masks:
        pixels = np.stack([np.asarray(Image.open(path)) for path in clip.truth if path is not None])
        return pixels > 0 if task == "binary" else pixels

    def read_prediction(clip: BenchmarkClip, folder: Path) -> Masks | None:
        paths = [folder / clip.predictions[k] for k in clip.annotated]
        if not any(path.is_file() for path in paths):
            return None
        return np.stack([np.asarray(Image.open(path)) for path in paths])

    classes = () if task == "binary" else CLASSES
    return Dataset(benchmark, task, root, "test", tuple(found), read_truth, read_prediction, classes)


def report_of(dataset: Dataset, **more: Any) -> dict[str, Any]:
    """The scores of the data set's predictions as a report, with whatever an evaluation adds."""
    return score(dataset, dataset.root / "predictions").to_dict() | more


def _save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
