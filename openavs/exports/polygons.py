"""Polygons of masks: exact outlines along pixel edges, simplified and joined to one polygon per mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from openavs.structures.types import BoolMask

Ring = npt.NDArray[np.int64]
"""Corners of a closed outline, x and y `[N, 2]` in pixels; the last is connected to the first."""

TOLERANCE = 0.75  # pixels; the steps of a diagonal outline are at most 0.71 from the line


@dataclass
class ConversionWarnings:
    """Counts of masks that one polygon cannot represent exactly."""

    masks: int = 0
    with_holes: int = 0
    in_parts: int = 0

    def __str__(self) -> str:
        return (
            f"of {self.masks} masks {self.with_holes} had holes, which are filled, and {self.in_parts} were in parts, "
            "which are joined by thin lines; outlines are simplified"
        )


def mask_to_polygon(mask: BoolMask, warnings: ConversionWarnings | None = None) -> Ring | None:
    """Return one polygon `[N, 2]` (x, y in pixels) of a mask `[H, W]`; None for an empty mask.

    Holes are filled. Parts are joined by thin lines, like in the usual converters from COCO. The outline is simplified
    to within `TOLERANCE` pixels.
    """
    parts, holes = mask_to_rings(mask)
    if not parts:
        return None
    if warnings is not None:
        warnings.masks += 1
        warnings.with_holes += bool(holes)
        warnings.in_parts += len(parts) > 1
    parts.sort(key=signed_area, reverse=True)
    return join_rings([simplify(part, TOLERANCE) for part in parts])


def mask_to_rings(mask: BoolMask) -> tuple[list[Ring], list[Ring]]:
    """Return the outlines of the parts and of the holes of a mask `[H, W]`, along pixel edges.

    Pixel (0, 0) spans 0 to 1.

    Filling the parts and clearing the holes restores the mask exactly. Pixels that touch only at a corner are separate
    parts. In image coordinates parts run clockwise, holes counterclockwise.
    """
    successors = _edges(mask)
    width = mask.shape[1] + 1
    rings: tuple[list[Ring], list[Ring]] = ([], [])
    while successors:
        ring = _corners(_walk(successors, width), width)
        rings[signed_area(ring) < 0].append(ring)
    return rings


def signed_area(ring: npt.NDArray[np.generic]) -> float:
    """The area in pixels (shoelace formula), positive for a ring that runs clockwise as seen."""
    x, y = np.asarray(ring, dtype=np.float64).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def simplify(ring: Ring, tolerance: float) -> Ring:
    """Simplify a ring by the Douglas-Peucker algorithm with a tolerance in pixels.

    A ring that would lose its area is returned unchanged.
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


def join_rings(rings: Sequence[Ring]) -> Ring:
    """Join rings to one: each is attached by a line there and back between the nearest corners, which has no area."""
    whole = rings[0]
    for ring in rings[1:]:
        gaps = np.sum((whole[:, None, :] - ring[None, :, :]) ** 2, axis=2)
        here, there = (int(i) for i in np.unravel_index(int(np.argmin(gaps)), gaps.shape))
        around = np.concatenate([ring[there:], ring[: there + 1]])
        whole = np.concatenate([whole[: here + 1], around, whole[here:]])
    return whole


def _edges(mask: BoolMask) -> dict[int, list[int]]:
    """Return corner -> next corners along the edges of the mask, with the mask on the right."""
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
    successors: dict[int, list[int]] = {}
    for start, end in np.concatenate(ends, axis=1).T.tolist():
        successors.setdefault(start, []).append(end)
    return successors


def _walk(successors: dict[int, list[int]], width: int) -> list[int]:
    """Remove one closed outline from the edges; at a corner that two outlines share it turns right."""
    start = next(iter(successors))
    path, came, first = [start], 0, 0
    while True:
        here, choices = path[-1], successors[path[-1]]
        right = here + _right_of(came, width)
        end = right if right in choices else choices[0]
        choices.remove(end)
        if not choices:
            del successors[here]
        came = end - here
        first = first or came
        if end == start and (start not in successors or _right_of(came, width) == first):
            return path
        path.append(end)


def _right_of(step: int, width: int) -> int:
    """Return the step after a right turn: right, down, left, up."""
    return {1: width, width: -1, -1: -width, -width: 1}.get(step, step)


def _corners(path: list[int], width: int) -> Ring:
    """Return the points of a path at which its direction changes."""
    flat = np.array(path, dtype=np.int64)
    steps = np.roll(flat, -1) - flat
    corners = flat[steps != np.roll(steps, 1)]
    return np.stack([corners % width, corners // width], axis=1)


def _distances(points: Ring, start: Ring, end: Ring) -> npt.NDArray[np.float64]:
    """Return the distances in pixels of points from the line between two different points."""
    along = (end - start).astype(np.float64)
    offset = (points - start).astype(np.float64)
    length = float(np.hypot(*along))
    return np.asarray(np.abs(along[0] * offset[:, 1] - along[1] * offset[:, 0]) / length)
