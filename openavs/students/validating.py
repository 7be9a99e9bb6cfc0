"""Scores a student on a split without writing anything: the figures that choose the best checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from openavs.benchmarks.dataset import Dataset
from openavs.benchmarks.figures import Figures
from openavs.benchmarks.tallies import tally_for
from openavs.media.logmel import Floats
from openavs.students.answers import predict_clip, scored_maps
from openavs.students.base import Student
from openavs.students.data import read_frames

CHOSEN_BY = {"binary": "miou", "semantic": "miou", "open-vocabulary": "harmonic"}
"""The figure that the best checkpoint has the highest of."""


def validate(
    student: Student, dataset: Dataset, features: Mapping[str, Floats], progress: Callable[[int], None]
) -> Figures:
    """The official figures of a student in evaluation mode, left in the mode it was in; `progress` counts clips."""
    classes = None if dataset.task == "binary" else dataset.classes
    tally = tally_for(dataset)
    was_training = student.training
    student.eval()
    for done, clip in enumerate(dataset.clips, start=1):
        images = read_frames(clip, range(len(clip.frames)))
        prediction = predict_clip(student, clip.id, images, features[clip.id], classes)
        truth = dataset.read_truth(clip)
        tally.add(clip, scored_maps(prediction, clip, classes, (truth.shape[1], truth.shape[2])), truth)
        progress(done)
    student.train(was_training)
    return tally.figures("official")


def chosen_figure(dataset: Dataset, figures: Figures) -> float:
    """Return the figure to choose by; the mean IoU of a split that has no base or no novel class."""
    one_sided = dataset.task == "open-vocabulary" and None in (figures["base"], figures["novel"])
    value = figures["miou" if one_sided else CHOSEN_BY[dataset.task]]
    return float(value if value is not None else 0.0)
