"""Scores a student on a split without writing anything: the figures that choose the best checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.metrics.functional import Figures
from openavs.evaluation.metrics.metrics import make_metric
from openavs.media.log_mel import Floats
from openavs.training.base import Student
from openavs.training.data.dataset import read_frames
from openavs.training.predictions import predict_clip, scored_maps

CHOSEN_BY = {"binary": "miou", "semantic": "miou", "open-vocabulary": "harmonic"}
"""The figure that the best checkpoint has the highest of."""


def validate(
    student: Student, dataset: Dataset, features: Mapping[str, Floats], progress: Callable[[int], None]
) -> Figures:
    """The official figures of a student in evaluation mode, left in the mode it was in; `progress` counts clips."""
    classes = None if dataset.task == "binary" else dataset.classes
    metric = make_metric(dataset.task, dataset.classes)
    was_training = student.training
    student.eval()
    for done, clip in enumerate(dataset.clips, start=1):
        images = read_frames(clip, range(len(clip.frames)))
        prediction = predict_clip(student, clip.id, images, features[clip.id], classes)
        truth = dataset.read_truth(clip)
        metric.update(scored_maps(prediction, clip, classes, (truth.shape[1], truth.shape[2])), truth)
        progress(done)
    student.train(was_training)
    return metric.compute("official")


def chosen_figure(dataset: Dataset, figures: Figures) -> float:
    """Return the figure to choose by; the mean IoU of a split that has no base or no novel class."""
    one_sided = dataset.task == "open-vocabulary" and None in (figures["base"], figures["novel"])
    value = figures["miou" if one_sided else CHOSEN_BY[dataset.task]]
    return float(value if value is not None else 0.0)
