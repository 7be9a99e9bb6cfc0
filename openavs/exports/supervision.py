"""Segments as `supervision.Detections`, and overlays drawn by supervision's annotators (optional dependency)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from openavs.errors import InputError
from openavs.exports.base import Categories
from openavs.structures.masks import resize_mask, rle_to_mask
from openavs.structures.types import Clip, ClipResult, FrameResult, ImageArray, Segment
from openavs.utils.optional_deps import import_optional
from openavs.utils.text import did_you_mean
from openavs.visualization.colors import DISTINCT
from openavs.visualization.overlay import OverlayPainter, paint

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


# ----------------------------------------------------------------------------------------------------------- overlays

_COLOR = {"color": 1}
_LINE = {"color": 1, "thickness": 2}
STYLES: dict[str, tuple[str, dict[str, int]]] = {
    "background": ("BackgroundOverlayAnnotator", {}),
    "blur": ("BlurAnnotator", {}),
    "box": ("BoxAnnotator", _LINE),
    "corners": ("BoxCornerAnnotator", _LINE | {"corner_length": 20}),
    "dot": ("DotAnnotator", _COLOR | {"radius": 8}),
    "ellipse": ("EllipseAnnotator", _LINE),
    "halo": ("HaloAnnotator", _COLOR | {"kernel_size": 40}),
    "heat-map": ("HeatMapAnnotator", {"radius": 40, "kernel_size": 25}),
    "label": ("LabelAnnotator", _COLOR | {"text_padding": 6}),
    "mask": ("MaskAnnotator", _COLOR),
    "pixelate": ("PixelateAnnotator", {}),
    "polygon": ("PolygonAnnotator", _LINE),
    "trace": ("TraceAnnotator", _LINE | {"trace_length": 60}),
}
"""Annotators by the name of their style, with their colors and their sizes in pixels of a video of 480 lines."""

_SIZES = ("thickness", "corner_length", "radius", "kernel_size", "text_padding")


class AnnotatorPainter(OverlayPainter):
    """Draws a clip with supervision's annotators at full frame rate, as a callback of `media.write_overlay`.

    The masks move as in `OverlayPainter`; names and colors are the same. Boxes are those of the masks, since a
    detector's box does not move between the sampled frames.

    Args:
        result: to draw.
        styles: keys of `STYLES`, drawn in this order.
        clip: the clip, whose motion carries the masks along.

    Raises:
        InputError: supervision is not installed, no such style, or `trace` for a result without tracks.
    """

    def __init__(self, result: ClipResult, styles: Sequence[str], clip: Clip | None = None) -> None:
        check_styles(styles)
        self._supervision = import_optional("supervision", "supervision")
        has_tracks = any(segment.track is not None for frame in result.frames for segment in frame.segments)
        if "trace" in styles and any(frame.segments for frame in result.frames) and not has_tracks:
            raise InputError(f"trace follows tracks, and {result.clip} has none; segment it with --track")
        super().__init__(result, clip=clip)
        self._styles = tuple(styles)
        self._annotators: list[Any] = []
        self._last = float("inf")

    def draw(self, time: float, image: ImageArray, frame: FrameResult | None) -> ImageArray:
        """Return the image with a result; an earlier time than the last one starts again."""
        if time < self._last:  # annotators keep the past: lines and heat
            self._annotators = [self._make(style, min(image.shape[:2])) for style in self._styles]
        self._last = time
        found = self._detections(() if frame is None else frame.segments, image.shape[:2])
        scene = np.ascontiguousarray(image[..., ::-1])  # annotators take BGR
        for style, annotator in zip(self._styles, self._annotators, strict=True):
            drawn = found[found.tracker_id >= 0] if style == "trace" else found
            scene = annotator.annotate(scene, drawn)
        painted = np.ascontiguousarray(scene[..., ::-1])
        return paint(painted, (), watermark=self.watermark) if self.watermark else painted

    def _make(self, style: str, height: int) -> Any:
        name, options = STYLES[style]
        made: dict[str, Any] = {
            key: max(2, round(value * height / 480)) if key in _SIZES else value for key, value in options.items()
        }
        if "color" in made:
            made["color"] = self._supervision.ColorPalette([self._supervision.Color(*color) for color in DISTINCT])
        if style == "label":
            made |= {"text_scale": max(0.35, height / 1000), "smart_position": True}
        return getattr(self._supervision, name)(**made)

    def _detections(self, segments: Sequence[Segment], size: tuple[int, int]) -> Detections:
        """Return the segments of a moved frame; tracks are -1 where a segment has none."""
        masks = np.zeros((len(segments), *size), dtype=np.bool_)
        for i, segment in enumerate(segments):
            masks[i] = resize_mask(rle_to_mask(segment.mask), size)
        names = np.array([s.phrase for s in segments], dtype=np.str_)
        found: Detections = self._supervision.Detections(
            xyxy=self._supervision.mask_to_xyxy(masks).astype(np.float32).reshape(-1, 4),
            mask=masks,
            confidence=np.array([s.score for s in segments], dtype=np.float32),
            class_id=np.array([self.palette.index(s.phrase) for s in segments], dtype=int),
            tracker_id=np.array([-1 if s.track is None else s.track for s in segments], dtype=int),
            data={"class_name": names, "phrase": names},
        )
        return found


def check_styles(styles: Sequence[str]) -> None:
    """Raise InputError for no style or an unknown one."""
    if not styles:
        raise InputError(f"give at least one style: {', '.join(STYLES)}")
    for style in styles:
        if style not in STYLES:
            raise InputError(f"there is no style {style!r}; {did_you_mean(style, STYLES)}")
