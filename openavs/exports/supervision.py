"""Conversion of a frame's segments to `supervision.Detections` (optional dependency)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from openavs.exports.base import Categories
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import ClipResult
from openavs.utils.optional_deps import import_optional

if TYPE_CHECKING:
    from supervision import Detections


def to_supervision(result: ClipResult, frame: int, categories: Categories | None = None) -> Detections:
    """Convert the segments of one frame to `supervision.Detections`.

    `xyxy` are the detector's boxes in pixels, `mask` bool `[N, H, W]`, `confidence` the scores, `class_id` the
    category's id minus one and `tracker_id` the track (None unless all have one); `data` has `class_name` and
    `phrase`. Segments without a category are left out.

    Args:
        result: the result.
        frame: position in `result.frames`.
        categories: the categories; pass the same object for all frames to keep the class ids.

    Raises:
        InputError: supervision is not installed.
    """
    supervision = import_optional("supervision", "supervision")
    known = categories if categories is not None else Categories.of_clip(result)
    segments = [s for s in result.frames[frame].segments if known.id(s) is not None]
    ids = [known.id(s) or 0 for s in segments]
    tracks = [s.track for s in segments]
    masks = [rle_to_mask(s.mask) for s in segments]
    found: Detections = supervision.Detections(
        xyxy=np.array([s.box for s in segments], dtype=np.float32).reshape(-1, 4),
        mask=np.stack(masks) if masks else np.zeros((0, *result.size), dtype=np.bool_),
        confidence=np.array([s.score for s in segments], dtype=np.float32),
        class_id=np.array(ids, dtype=int) - 1,
        tracker_id=np.array(tracks, dtype=int) if segments and None not in tracks else None,
        data={
            "class_name": np.array([known.names[number - 1] for number in ids], dtype=np.str_),
            "phrase": np.array([s.phrase for s in segments], dtype=np.str_),
        },
    )
    return found
