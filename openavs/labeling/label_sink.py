"""The labels of a clip: PNG files below `OUT/labels`, in the layout of the benchmark that it belongs to.

A clip of no benchmark has the layout of AVSBench-semantic: `<group>/<id>/labels_semantic/<k>.png`, k counted from 0,
where the group is the manifest's, or `clips`. Binary labels are gray, 0 or 255; class labels are palette PNGs whose
pixel values are the class indices, 0 the background.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from openavs.config.recipe import recipe_from_dict
from openavs.evaluation.predictions import PredictionSink
from openavs.jobs.job import Job
from openavs.jobs.sample import Sample
from openavs.results.filters import FilteredResult, apply_label_filters
from openavs.structures.types import ClipResult
from openavs.utils.fs import remove_folder

GROUP = "clips"


class LabelSink(PredictionSink):
    """Writes the segments that pass the recipe's label filters; a clip may be dropped as a whole."""

    folder = "labels"

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.rules = recipe_from_dict(dict(job.recipe)).label_filter

    def filter(self, result: ClipResult) -> FilteredResult:
        """Apply the label filters of the recipe."""
        return apply_label_filters(result, self.rules)

    def places(self, sample: Sample, result: ClipResult) -> list[str]:
        """Return the path of each frame's label below `labels/`."""
        if sample.places:
            return super().places(sample, result)
        folder = _group_folder(sample) / "labels_semantic"
        return [str(folder / f"{frame.index}.png") for frame in result.frames]

    def remove(self, sample: Sample) -> None:
        """Remove the labels of a clip."""
        super().remove(sample)
        if (folder := self.folder_of(sample)) is not None:
            remove_folder(self.job.out / folder, self.job.out)

    def folder_of(self, sample: Sample) -> str | None:
        """Return the folder of a clip's labels, if the clip has no benchmark's layout."""
        return None if sample.places else f"{self.folder}/{_group_folder(sample)}"


def _group_folder(sample: Sample) -> PurePosixPath:
    """Return the folder below `labels/` of a clip without a benchmark's layout."""
    return PurePosixPath(sample.group or GROUP, sample.id)
