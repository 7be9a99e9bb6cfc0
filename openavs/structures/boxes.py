"""Box geometry."""

from __future__ import annotations

from openavs.structures.types import Box


def iou(one: Box, two: Box) -> float:
    """Return the intersection over union of two boxes; 0 for boxes without area."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((one[2] - one[0]) * (one[3] - one[1]) + (two[2] - two[0]) * (two[3] - two[1]) - both)
