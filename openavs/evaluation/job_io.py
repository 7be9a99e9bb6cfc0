"""Benchmark clips in jobs: a clip as a sample of the loop, and the files of its masks.

`PredictionSink` writes `OUT/predictions`, `LabelSink` `OUT/labels`, in the layout of the benchmark. A clip of no
benchmark has the layout of AVSBench-semantic: `<group>/<id>/labels_semantic/<k>.png`, k counted from 0, where the group
is the manifest's, or `clips`. Binary masks are gray, 0 or 255; class masks are palette PNGs whose pixel values are the
class indices, 0 the background.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
from PIL import Image

from openavs.config.recipe import recipe_from_dict
from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip
from openavs.evaluation.datasets.mask_io import png_size, resize_mask
from openavs.jobs.job import Job, PredictorOutput, ProbabilisticResult, Sink
from openavs.jobs.sample import Sample, relative
from openavs.results.filters import FilteredResult, apply_label_filters
from openavs.results.serialization import mask_values, palette_png
from openavs.structures.masks import segments_to_label_map, segments_to_mask
from openavs.structures.types import Clip, ClipResult, ImageArray
from openavs.utils.fs import remove_file, remove_folder, safe_id, write_hashed
from openavs.utils.text import pluralize


def folder_names(clips: Iterable[BenchmarkClip]) -> dict[str, str]:
    """Return the folder below OUT/clips of each clip, by its id.

    Ids are those of YouTube: they may begin with a dash, and differ in case alone, which some file systems ignore.
    Those get a hash of themselves, whichever clips are run.
    """
    ids = [clip.id for clip in clips]
    alike = Counter(id.casefold() for id in ids)
    return {id: safe_id(id, taken=[id] if alike[id.casefold()] > 1 else ()) for id in ids}


def to_sample(clip: BenchmarkClip, name: str, root: Path, spelling: Mapping[str, str] | None = None) -> Sample:
    """Return a benchmark's clip as a sample: one frame a second, the wav beside, its classes as plain phrases.

    Args:
        clip: The clip.
        name: The sample's id.
        root: The absolute folder that the sample's paths start from.
        spelling: Phrases by class; by default the class with blanks in place of dashes.
    """

    def place(path: Path) -> str:
        return relative(path.absolute(), root)

    masks = (path for path in clip.truth if path is not None and path.suffix == ".png")  # AVSBench-OV has one JSON
    like = next((path for path in masks if os.path.isfile(path)), None)
    video = None if clip.video is None else place(clip.video)
    is_video = clip.times is not None and video is not None  # its frames and its sound are in one file
    return Sample(
        name,
        (video or "") if is_video else place(clip.frames[0].parent) if clip.frames else "",
        name=clip.id if clip.id != name else None,
        audio=None if is_video else place(clip.audio),
        frames=tuple(place(frame) for frame in clip.frames),
        places=clip.predictions,
        like=None if like is None else place(like),
        classes=tuple((spelling or {}).get(label, label.replace("-", " ")) for label in clip.classes),
        video=None if is_video else video,
        sound=clip.sound,
        expression=clip.expression,
        times=clip.times() if clip.times is not None else (),
    )


class PredictionSink(Sink):
    """Writes the mask of every frame below `OUT/predictions`, in the benchmark's layout, at the size of its masks."""

    folder: ClassVar[str] = "predictions"
    pictures = False  # collections may have a million clips

    def places(self, sample: Sample, result: ClipResult) -> list[str]:
        """Return the path of each frame's mask below the folder.

        Raises:
            InputError: the result has not one frame for each place.
        """
        if len(sample.places) != len(result.frames):
            frames = pluralize(len(sample.places), "frame")
            raise InputError(f"{sample.id} has {frames} and its result {len(result.frames)}; run it again")
        return list(sample.places)

    def write(self, sample: Sample, clip: Clip, output: PredictorOutput, filtered: FilteredResult) -> dict[str, str]:
        """Write the masks of a clip."""
        masks: PredictorOutput = output if isinstance(output, ProbabilisticResult) else filtered.result
        like = None if sample.like is None else self.job.root / sample.like
        size = None if like is None or not os.path.isfile(like) else png_size(like)
        pngs = encode_masks(masks, self.job.classes, size)
        return {
            f"{self.folder}/{place}": write_hashed(self.job.out / self.folder / place, png)
            for place, png in zip(self.places(sample, filtered.result), pngs, strict=True)
        }

    def remove(self, sample: Sample) -> None:
        """Remove the masks of a clip."""
        for place in sample.places:
            remove_file(self.job.out / self.folder / place, self.job.out)


def encode_masks(
    output: PredictorOutput, classes: tuple[str, ...], size: tuple[int, int] | None = None
) -> Iterator[bytes]:
    """Yield the mask of every frame as a PNG of `size` (height, width; None: the clip's).

    Without `classes` the union of all segments, gray, 0 or 255, or the probabilities of a `ProbabilisticResult`. With
    `classes` the class index of the best segment at each pixel, as a palette PNG; segments without one of them are not
    painted.
    """
    encode = palette_png if classes else gray_png
    for mask in _masks(output, classes):
        yield encode(mask if size is None else resize_mask(mask, size))


def _masks(output: PredictorOutput, classes: tuple[str, ...]) -> Iterator[ImageArray]:
    result = output.result if isinstance(output, ProbabilisticResult) else output
    if classes:
        for frame, numbers in zip(result.frames, mask_values(result, "class", classes), strict=True):
            yield segments_to_label_map(frame.segments, numbers, result.size)
    elif isinstance(output, ProbabilisticResult):
        yield from output.probability
    else:
        for frame in result.frames:
            yield segments_to_mask(frame.segments, result.size).astype(np.uint8) * 255


def gray_png(mask: ImageArray) -> bytes:
    """Encode an image uint8 `[H, W]` as an 8-bit gray PNG."""
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


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
