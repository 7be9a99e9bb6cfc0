"""YOLO-seg export: a text file per image, a line per segment with its class (from 0) and one normalized polygon.

The format is lossy: it has no holes, scores or tracks, and one outline per segment (see `polygons.mask_to_polygon`).
The number of changed masks is reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from openavs.exports.base import Categories, ExportItem, image_name, write_images
from openavs.exports.polygons import ConversionWarnings, mask_to_polygon
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import ClipResult, FrameResult


def to_yolo_seg(
    result: ClipResult, categories: Categories, warnings: ConversionWarnings | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Yield the file stem and the lines of every frame; classes are the category ids minus one."""
    for frame in result.frames:
        stem = image_name(result.clip, frame.index).removesuffix(".jpg").replace("/", "_")
        yield stem, list(_lines(frame, result.size, categories, warnings))


def _lines(
    frame: FrameResult, size: tuple[int, int], categories: Categories, warnings: ConversionWarnings | None
) -> Iterator[str]:
    for segment in frame.segments:
        category = categories.id(segment)
        polygon = mask_to_polygon(rle_to_mask(segment.mask), warnings)
        if category is None or polygon is None:
            continue
        shares = np.clip(polygon / np.array([size[1], size[0]]), 0.0, 1.0)
        yield " ".join([str(category - 1), *(f"{value:.6f}".rstrip("0").rstrip(".") for value in shares.ravel())])


def write(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `labels/<split>/`, `images/<split>/` (unless `images` is False) and `data.yaml`."""
    summary, warnings = ExportSummary(), ConversionWarnings()
    labels, images = folder / "labels" / options.split, folder / "images" / options.split
    labels.mkdir(parents=True)
    for item in items:
        summary.clips += 1
        for stem, lines in to_yolo_seg(item.result, options.categories, warnings):
            summary.frames += 1
            summary.segments += len(lines)
            (labels / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
        if options.images is not False:
            write_images(images, item, lambda name: name.replace("/", "_"))
    (folder / "data.yaml").write_text(_data(options), encoding="utf-8")
    summary.notes.append(f"YOLO-seg is lossy: {warnings}; scores and tracks are not kept")
    return summary


def _data(options: ExportOptions) -> str:
    """Return data.yaml. Names are written as JSON strings, which are valid YAML for any text.

    It has no `path`: Ultralytics resolves a relative one against the working directory, and without one uses the
    folder of the file.
    """
    place = f"images/{options.split}"
    names = "".join(f"  {i}: {json.dumps(name)}\n" for i, name in enumerate(options.categories.names))
    return f"train: {place}\nval: {place}\nnames:{' {}' if not names else ''}\n{names}"
