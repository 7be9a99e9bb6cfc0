"""YOLO-seg: a text file per picture, a line per thing: its class (from 0) and one polygon, x and y over the picture's
width and height. The format is lossy: it has no holes, no scores and no tracks, and one outline per thing (see
`polygons.mask_to_polygon`). How many masks that changes is counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from openavs.exports.categories import Categories
from openavs.exports.frames import picture_name, write_pictures
from openavs.exports.items import ExportItem
from openavs.exports.polygons import ConversionWarnings, mask_to_polygon
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.structures.types import ClipResult, FrameResult, rle_to_mask


def to_yolo_seg(
    segmentation: ClipResult, categories: Categories, losses: ConversionWarnings | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Per frame the stem of its file and its lines; classes are the categories' ids less one."""
    for frame in segmentation.frames:
        stem = picture_name(segmentation.clip, frame.index).removesuffix(".jpg").replace("/", "_")
        yield stem, list(_lines(frame, segmentation.size, categories, losses))


def _lines(
    frame: FrameResult, size: tuple[int, int], categories: Categories, losses: ConversionWarnings | None
) -> Iterator[str]:
    for segment in frame.segments:
        category = categories.id(segment)
        polygon = mask_to_polygon(rle_to_mask(segment.mask), losses)
        if category is None or polygon is None:
            continue
        shares = np.clip(polygon / np.array([size[1], size[0]]), 0.0, 1.0)
        yield " ".join([str(category - 1), *(f"{value:.6f}".rstrip("0").rstrip(".") for value in shares.ravel())])


def write(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Writes `labels/<split>/`, `images/<split>/` (unless `images` is False) and `data.yaml`."""
    told, losses = ExportSummary(), ConversionWarnings()
    labels, images = folder / "labels" / options.split, folder / "images" / options.split
    labels.mkdir(parents=True)
    for item in items:
        told.clips += 1
        for stem, lines in to_yolo_seg(item.result, options.categories, losses):
            told.frames += 1
            told.segments += len(lines)
            (labels / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
        if options.images is not False:
            write_pictures(images, item, lambda name: name.replace("/", "_"))
    (folder / "data.yaml").write_text(_data(options), encoding="utf-8")
    told.notes.append(f"YOLO-seg is lossy: {losses}; scores and tracks are not kept")
    return told


def _data(options: ExportOptions) -> str:
    """The description that trainers read; a name as JSON text is YAML, whatever it holds.

    It has no `path`: Ultralytics resolves a relative one against the working directory, and without one takes the
    folder of the file.
    """
    place = f"images/{options.split}"
    names = "".join(f"  {i}: {json.dumps(name)}\n" for i, name in enumerate(options.categories.names))
    return f"train: {place}\nval: {place}\nnames:{' {}' if not names else ''}\n{names}"
