"""YOLO-seg: a text file per picture, a line per thing: its class (from 0) and one polygon, x and y over the picture's
width and height. The format is lossy: it has no holes, no scores and no tracks, and one outline per thing (see
`polygons.mask_to_polygon`). How many masks that changes is counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from openavs.exports.base import Categories, ExportItem, picture_name, write_pictures
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.structures.types import BoolMask, ClipResult, FrameResult, rle_to_mask


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


Ring = npt.NDArray[np.int64]
"""The corners of a closed outline, x and y `[N, 2]`, in pixels; the last one is joined to the first."""

TOLERANCE = 0.75  # pixels; the steps of a slanted outline are at most 0.71 off the line


@dataclass
class ConversionWarnings:
    """Counts the masks that one polygon cannot represent exactly."""

    masks: int = 0
    with_holes: int = 0
    in_parts: int = 0

    def __str__(self) -> str:
        return (
            f"of {self.masks} masks {self.with_holes} had holes, which are filled, and {self.in_parts} were in parts, "
            "which are joined by thin lines; outlines are simplified"
        )


def mask_to_polygon(mask: BoolMask, losses: ConversionWarnings | None = None) -> Ring | None:
    """One polygon `[N, 2]` (x, y in pixels) for a mask `[H, W]`; None for an empty mask.

    Holes are filled. Several parts are joined by thin lines, as the usual converters from COCO do it. The outline is
    simplified to within `TOLERANCE` pixels.
    """
    parts, holes = mask_to_rings(mask)
    if not parts:
        return None
    if losses is not None:
        losses.masks += 1
        losses.with_holes += bool(holes)
        losses.in_parts += len(parts) > 1
    parts.sort(key=signed_area, reverse=True)
    return joined([simplified(part, TOLERANCE) for part in parts])


def mask_to_rings(mask: BoolMask) -> tuple[list[Ring], list[Ring]]:
    """The outlines of a mask `[H, W]`'s parts and of its holes, along pixel edges; pixel (0, 0) spans 0 to 1.

    Filling the first and clearing the second gives the mask back exactly. Pixels that touch at a corner only are
    different parts. Parts run clockwise as seen, holes the other way round.
    """
    following = _edges(mask)
    width = mask.shape[1] + 1
    rings: tuple[list[Ring], list[Ring]] = ([], [])
    while following:
        ring = _corners(_walk(following, width), width)
        rings[signed_area(ring) < 0].append(ring)
    return rings


def signed_area(ring: npt.NDArray[np.generic]) -> float:
    """The area in pixels (shoelace formula), positive for a ring that runs clockwise as seen."""
    x, y = np.asarray(ring, dtype=np.float64).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def simplified(ring: Ring, tolerance: float) -> Ring:
    """The ring without the corners that lie within `tolerance` pixels of the line between those that stay.

    Douglas and Peucker's rule. A ring that would lose its area is returned as it is.
    """
    far = int(np.argmax(np.sum((ring - ring[0]) ** 2, axis=1)))
    closed = np.concatenate([ring, ring[:1]])
    kept = np.zeros(len(closed), dtype=np.bool_)
    kept[[0, far, len(ring)]] = True
    spans = [(0, far), (far, len(ring))]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        distance = _distances(closed[first + 1 : last], closed[first], closed[last])
        worst = int(np.argmax(distance))
        if distance[worst] > tolerance:
            middle = first + 1 + worst
            kept[middle] = True
            spans += [(first, middle), (middle, last)]
    left = ring[kept[:-1]]
    return left if len(left) >= 3 else ring


def joined(rings: Sequence[Ring]) -> Ring:
    """One ring through all of some parts: each next one hangs on the outline so far by a line there and back, between
    their nearest corners. The lines enclose nothing."""
    whole = rings[0]
    for ring in rings[1:]:
        gaps = np.sum((whole[:, None, :] - ring[None, :, :]) ** 2, axis=2)
        here, there = (int(i) for i in np.unravel_index(int(np.argmin(gaps)), gaps.shape))
        around = np.concatenate([ring[there:], ring[: there + 1]])
        whole = np.concatenate([whole[: here + 1], around, whole[here:]])
    return whole


def _edges(mask: BoolMask) -> dict[int, list[int]]:
    """From every corner of the pixel grid the corners that an edge of the mask leads to, the mask on its right."""
    width = mask.shape[1] + 1
    padded = np.pad(mask, 1)
    below, above = padded[1:, 1:-1], padded[:-1, 1:-1]
    right, left = padded[1:-1, 1:], padded[1:-1, :-1]
    ends = []
    for here, (dx0, dy0), (dx1, dy1) in (
        (below & ~above, (0, 0), (1, 0)),  # the top of a pixel: to the right
        (above & ~below, (1, 0), (0, 0)),  # the bottom: to the left
        (left & ~right, (0, 0), (0, 1)),  # the right side: down
        (right & ~left, (0, 1), (0, 0)),  # the left side: up
    ):
        y, x = np.nonzero(here)
        ends.append(np.stack([(y + dy0) * width + x + dx0, (y + dy1) * width + x + dx1]))
    following: dict[int, list[int]] = {}
    for start, end in np.concatenate(ends, axis=1).T.tolist():
        following.setdefault(start, []).append(end)
    return following


def _walk(following: dict[int, list[int]], width: int) -> list[int]:
    """One closed outline, taken out of the edges; where two outlines touch it turns right and so stays with its own."""
    start = next(iter(following))
    path, came, first = [start], 0, 0
    while True:
        here, choices = path[-1], following[path[-1]]
        right = here + _right_of(came, width)
        end = right if right in choices else choices[0]
        choices.remove(end)
        if not choices:
            del following[here]
        came = end - here
        first = first or came
        if end == start and (start not in following or _right_of(came, width) == first):
            return path
        path.append(end)


def _right_of(step: int, width: int) -> int:
    """The step to the right of a step, as seen: right, down, left, up."""
    return {1: width, width: -1, -1: -width, -width: 1}.get(step, step)


def _corners(path: list[int], width: int) -> Ring:
    """The points of a path at which its direction changes."""
    flat = np.array(path, dtype=np.int64)
    steps = np.roll(flat, -1) - flat
    corners = flat[steps != np.roll(steps, 1)]
    return np.stack([corners % width, corners // width], axis=1)


def _distances(points: Ring, start: Ring, end: Ring) -> npt.NDArray[np.float64]:
    """The distance in pixels of points from the line between two others, which are not one."""
    along = (end - start).astype(np.float64)
    offset = (points - start).astype(np.float64)
    length = float(np.hypot(*along))
    return np.asarray(np.abs(along[0] * offset[:, 1] - along[1] * offset[:, 0]) / length)
