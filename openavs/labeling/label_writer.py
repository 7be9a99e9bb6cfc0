"""The labels of a clip: PNG files below `OUT/labels`, in the layout of the benchmark that it belongs to.

A clip of no benchmark gets AVSBench-semantic's: `<group>/<id>/labels_semantic/<k>.png`, k counted from 0, where the
group is the one that a manifest names, or `clips`. Binary labels are grey, 0 or 255; class labels are palette PNGs
whose pixel values are the class indices, 0 the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np

from openavs.errors import InputError
from openavs.evaluation.datasets.mask_io import resize_mask
from openavs.evaluation.predictor import grey_png
from openavs.labeling.sample import Sample
from openavs.results.serialization import mask_values, palette_png
from openavs.structures.types import ClipResult, ImageArray, segments_to_label_map, segments_to_mask
from openavs.utils.text import pluralize

GROUP = "clips"


def label_folder(item: Sample) -> PurePosixPath:
    """The folder below `labels/` of a clip without places of its own."""
    return PurePosixPath(item.group or GROUP, item.id)


def label_places(item: Sample, result: ClipResult) -> list[str]:
    """The path below `labels/` of each frame's label.

    Raises:
        InputError: a benchmark's clip whose result has not one frame for each of its places.
    """
    if not item.places:
        folder = label_folder(item) / "labels_semantic"
        return [str(folder / f"{frame.index}.png") for frame in result.frames]
    if len(item.places) != len(result.frames):
        raise InputError(f"{item.id} has {pluralize(len(item.places), 'frame')} and its result {len(result.frames)}")
    return list(item.places)


def label_pngs(result: ClipResult, classes: tuple[str, ...], size: tuple[int, int] | None) -> Iterator[bytes]:
    """The label of every frame as a PNG: binary without `classes`, else their indices; `size` None: the picture's."""
    encode = palette_png if classes else grey_png
    for label in _maps(result, classes):
        yield encode(label if size is None else resize_mask(label, size))


def _maps(result: ClipResult, classes: tuple[str, ...]) -> Iterator[ImageArray]:
    if not classes:
        for frame in result.frames:
            yield segments_to_mask(frame.segments, result.size).astype(np.uint8) * 255
        return
    for frame, numbers in zip(result.frames, mask_values(result, "class", classes), strict=True):
        yield segments_to_label_map(frame.segments, numbers, result.size)
