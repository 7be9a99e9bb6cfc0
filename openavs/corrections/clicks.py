"""Masks from a person's clicks: by the recipe's segmenter, or else by color."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from openavs.structures.masks import mask_to_rle, rle_to_mask
from openavs.structures.types import BoolMask, Box, ImageArray

Click = tuple[float, float, bool]
"""x and y in pixels, and whether the point belongs to the object."""

MIN_SCORE = 0.88
"""Least estimate of its IoU of a segmenter's mask (the default of segment-anything's automatic masks)."""

_KEPT = 0.8  # share of the mask before that a mask with an added point keeps
_GROWN = 0.1  # share of the mask before by which a mask with a removed point may grow
_REACH = 0.2  # of the longer side of the picture: radius in which a click may change pixels
_DOT = 2  # pixels; radius of what a click itself decides
_ROUNDS = 3  # of GrabCut


def click_mask(image: ImageArray, before: BoolMask, clicks: Sequence[Click], segmenter: Any = None) -> BoolMask:
    """Return the mask of an object after clicks, bool `[H, W]`; it agrees with all of them.

    A segmenter with `segment_points` is tried first; its mask counts if it agrees with the clicks, is sure of itself
    and resembles the mask before. Else the colors decide (Rother et al., "GrabCut", SIGGRAPH 2004), near the clicks
    and the mask before.

    Args:
        image: the picture.
        before: the mask before; empty for a new object.
        clicks: all clicks on the object so far, the new one last.
        segmenter: the recipe's segmenter; None: colors only.
    """
    before = np.ascontiguousarray(before)  # decoded masks are column-major, and OpenCV draws by rows
    mask = None if not hasattr(segmenter, "segment_points") else _segmented(image, before, clicks, segmenter)
    if mask is None:
        mask = _by_color(image, before, clicks)
    for x, y, inside in clicks:
        mask = _dotted(mask, x, y, inside)
    return mask


def box_mask(image: ImageArray, box: Box, segmenter: Any = None) -> BoolMask:
    """Return the mask of the object in a box, by the segmenter or else by color."""
    if hasattr(segmenter, "segment"):
        [[mask]] = segmenter.segment([image], [[box]])
        if mask.rle.area:
            return rle_to_mask(mask.rle)
    inside = np.zeros(image.shape[:2], dtype=np.bool_)
    x0, y0, x1, y1 = (max(round(edge), 0) for edge in box)
    inside[y0:y1, x0:x1] = True
    areas = np.where(inside, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    found = _grab_cut(image, areas)
    return found if found.any() else inside


def _segmented(image: ImageArray, before: BoolMask, clicks: Sequence[Click], segmenter: Any) -> BoolMask | None:
    points = [(x, y) for x, y, _ in clicks]
    labels = [inside for _, _, inside in clicks]
    old = mask_to_rle(before) if before.any() else None
    if old is not None and not any(labels):  # the model needs a point inside
        points, labels = [*points, _center(before, clicks)], [*labels, True]
    for prompt in (None, old) if old is not None else (None,):
        for found in segmenter.segment_points(image, points, labels, mask=prompt):
            mask = rle_to_mask(found.rle)
            if (found.score or 0.0) >= MIN_SCORE and _agrees(mask, before, clicks):
                return mask
    return None


def _agrees(mask: BoolMask, before: BoolMask, clicks: Sequence[Click]) -> bool:
    if any(bool(mask[int(y), int(x)]) != inside for x, y, inside in clicks):
        return False
    size = int(before.sum())
    if clicks[-1][2]:
        return int((mask & before).sum()) >= _KEPT * size
    return int((mask & ~before).sum()) <= _GROWN * size and bool((mask & before).any())


def _by_color(image: ImageArray, before: BoolMask, clicks: Sequence[Click]) -> BoolMask:
    longest = max(image.shape[:2])
    near = before.astype(np.uint8)
    likely = before.astype(np.uint8)
    for x, y, inside in clicks:
        if inside:
            cv2.circle(near, (int(x), int(y)), round(_REACH * longest), 1, -1)
            cv2.circle(likely, (int(x), int(y)), max(round(longest / 64), _DOT), 1, -1)
    close = cv2.dilate(near, np.ones((2 * (longest // 16) + 1,) * 2, np.uint8))
    areas = np.where(likely > 0, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    areas[close == 0] = cv2.GC_BGD
    if before.any():
        x, y = _center(before, clicks)
        cv2.circle(areas, (int(x), int(y)), _DOT, cv2.GC_FGD, -1)
    for x, y, inside in clicks:
        cv2.circle(areas, (int(x), int(y)), _DOT, cv2.GC_FGD if inside else cv2.GC_BGD, -1)
    found = _grab_cut(image, areas)
    return before | found if clicks[-1][2] else before & found


def _grab_cut(image: ImageArray, areas: npt.NDArray[np.uint8]) -> BoolMask:
    """Return the foreground; of areas without both kinds of pixels what is marked as foreground."""
    cv2.setRNGSeed(0)
    foreground = np.isin(areas, (cv2.GC_FGD, cv2.GC_PR_FGD))
    if foreground.any() and not foreground.all():
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(np.ascontiguousarray(image[..., ::-1]), areas, None, *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
        foreground = np.isin(areas, (cv2.GC_FGD, cv2.GC_PR_FGD))
    return np.asarray(foreground, dtype=np.bool_)


def _center(mask: BoolMask, clicks: Sequence[Click]) -> tuple[float, float]:
    """Return the point of a mask that is deepest inside, away from points that are removed."""
    inner = np.pad(mask, 1).astype(np.uint8)
    for x, y, inside in clicks:
        if not inside:
            cv2.circle(inner, (int(x) + 1, int(y) + 1), _DOT, 0, -1)
    depth = cv2.distanceTransform(inner, cv2.DIST_L2, 3)
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(column - 1), float(row - 1)


def _dotted(mask: BoolMask, x: float, y: float, inside: bool) -> BoolMask:
    """Return the mask with its pixel at a click set; with the pixels around it where that pixel was wrong."""
    if bool(mask[int(y), int(x)]) == inside:
        return mask
    dots = np.ascontiguousarray(mask, dtype=np.uint8)
    cv2.circle(dots, (int(x), int(y)), _DOT, int(inside), -1)
    return dots.astype(np.bool_)
