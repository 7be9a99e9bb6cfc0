"""The labels of a clip: PNG files below `OUT/labels`, in the layout of the benchmark that it belongs to.

A clip of no benchmark gets AVSBench-semantic's: `<group>/<id>/labels_semantic/<k>.png`, k counted from 0, where the
group is the one that a manifest names, or `clips`. Binary labels are grey, 0 or 255; class labels are palette PNGs
whose pixel values are the class indices, 0 the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np

from openavs.benchmarks.pngs import resized
from openavs.benchmarks.running import grey_png
from openavs.jobs.items import Item
from openavs.results import mask_values, palette_png
from openavs.spelling import counted
from openavs.types import Image, InputError, Segmentation, segments_to_label_map, segments_to_mask

GROUP = "clips"


def label_folder(item: Item) -> PurePosixPath:
    """The folder below `labels/` of a clip without places of its own."""
    return PurePosixPath(item.group or GROUP, item.id)


def label_places(item: Item, result: Segmentation) -> list[str]:
    """The path below `labels/` of each frame's label.

    Raises:
        InputError: a benchmark's clip whose result has not one frame for each of its places.
    """
    if not item.places:
        folder = label_folder(item) / "labels_semantic"
        return [str(folder / f"{frame.index}.png") for frame in result.frames]
    if len(item.places) != len(result.frames):
        raise InputError(f"{item.id} has {counted(len(item.places), 'frame')} and its result {len(result.frames)}")
    return list(item.places)


def label_pngs(result: Segmentation, classes: tuple[str, ...], size: tuple[int, int] | None) -> Iterator[bytes]:
    """The label of every frame as a PNG: binary without `classes`, else their indices; `size` None: the picture's."""
    encode = palette_png if classes else grey_png
    for label in _maps(result, classes):
        yield encode(label if size is None else resized(label, size))


def _maps(result: Segmentation, classes: tuple[str, ...]) -> Iterator[Image]:
    if not classes:
        for frame in result.frames:
            yield segments_to_mask(frame.segments, result.size).astype(np.uint8) * 255
        return
    for frame, numbers in zip(result.frames, mask_values(result, "class", classes), strict=True):
        yield segments_to_label_map(frame.segments, numbers, result.size)
