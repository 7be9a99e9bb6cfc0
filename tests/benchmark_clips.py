"""Clips of a benchmark opened, and predictions written, outside of a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.job_io import PredictionSink, to_sample
from openavs.jobs.job import Job
from openavs.jobs.loader import ClipLoader
from openavs.results.filters import FilteredResult
from openavs.structures.types import Clip, ClipResult


def open_benchmark_clip(clip: BenchmarkClip, id: str) -> Clip:
    """Opens a clip as `evaluate` does."""
    root = Path("/")
    return ClipLoader(root, root, 1.0).open(to_sample(clip, id, root))


def write_predictions(
    dataset: Dataset, classes: Sequence[str], clip: BenchmarkClip, folder: Path, result: ClipResult
) -> None:
    """Writes the predictions of a clip below `folder / "predictions"`."""
    root = dataset.root.absolute()
    sink = PredictionSink(Job(folder, "key", root, {}, classes=tuple(classes)))
    sample = to_sample(clip, clip.id, root)
    sink.write(sample, open_benchmark_clip(clip, clip.id), result, FilteredResult(result, None, {}))
