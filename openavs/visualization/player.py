"""Data of the player: masks, boxes and scores of a clip as JSON, which `report/player.js` draws over the picture.

Masks are COCO run-length codes, scaled down and each kept once. The format:

- `size`: (height, width) of the clip in pixels; `end`: length in s; `threshold`: least score of a box, or null.
- `objects`: name and color `[r, g, b]` of each object; `codes`: the run-length codes.
- `views`: pictures side by side, each with the `title`, the `size` of its masks, and `frames`. A frame has `index`,
  `time`, the interval `start` to `stop` in which it is shown, a line of text `status`, `segments` as
  `[object, score or null, code]`, and `candidates` as `[phrase, object or null, score, box]`: the boxes below the
  threshold.
- `moving`: null, or the masks between the sampled frames of the first view: `rate` per second, their `size`, and
  `frames`, the segments of each 1 / `rate` s, or null where those of the sampled frame are shown.
- `begin`: the time in s that is shown first, of a clip that of the first frame with most objects.
- `images`: the pictures as `[start, data URI]`; null if the page has a video, or shows the frames elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from openavs.structures.masks import RLE, mask_to_rle, resize_mask, rle_to_mask, small_size
from openavs.structures.types import Clip, ClipResult, FrameResult, Rejection
from openavs.visualization.colors import RGB, Palette
from openavs.visualization.moving_masks import MovingMasks
from openavs.visualization.overlay import status_line

Row = tuple[int, float | None, int]
"""An object and a code, as indices, with the score between them."""

MOVING_RATE = 8.0  # masks between the sampled frames, per second
MAX_CHARACTERS = 6_000_000  # of the codes of a clip; longer ones have coarser masks
_SIDES = (960, 480, 240)  # pixels of the longest side of masks, the first that `MAX_CHARACTERS` allows
_MOVING_SIDE = 480  # pixels; moving masks have no finer detail
_BELOW = "below threshold"


class MaskCodes:
    """The objects of a page's masks, and their run-length codes, each kept once."""

    def __init__(self) -> None:
        self.characters = 0
        self._codes: dict[str, int] = {}
        self._objects: dict[str, int] = {}

    def row(self, name: str, score: float | None, mask: RLE, side: int) -> Row:
        """Return the row of an object's mask, scaled down to a longest side of `side` pixels."""
        counts = shrink_mask(mask, side).counts
        if counts not in self._codes:
            self.characters += len(counts)
        index = self._objects.setdefault(name, len(self._objects))
        return index, None if score is None else round(score, 4), self._codes.setdefault(counts, len(self._codes))

    @property
    def names(self) -> list[str]:
        """The names of the objects."""
        return list(self._objects)

    def find(self, name: str) -> int | None:
        """Return the index of an object; None for a name without a mask."""
        return self._objects.get(name)

    def to_dict(self, colors: Palette | Mapping[str, RGB]) -> dict[str, Any]:
        """Return `objects` and `codes` of the format."""
        objects = [{"name": name, "color": colors[name]} for name in self._objects]
        return {"objects": objects, "codes": list(self._codes)}


def shrink_mask(mask: RLE, side: int) -> RLE:
    """Scale a mask down to a longest side of `side` pixels."""
    size = small_size(mask.size, side)
    return mask if size == mask.size else mask_to_rle(resize_mask(rle_to_mask(mask), size))


class MotionRecorder:
    """Keeps the masks that an overlay shows, at `MOVING_RATE`, as a callback of `OverlayPainter`."""

    def __init__(self) -> None:
        self.frames: list[list[tuple[str, float, RLE]] | None] = []

    def __call__(self, time: float, frame: FrameResult | None) -> None:
        """Add the result at a time in s, with shown names; times are in order."""
        slot = int(time * MOVING_RATE + 1e-6)
        if slot < len(self.frames):
            return
        last = self.frames[-1] if self.frames else None
        self.frames += [last] * (slot - len(self.frames))
        moved = frame is not None and frame.interpolated
        rows = [(s.phrase, s.score, shrink_mask(s.mask, _MOVING_SIDE)) for s in frame.segments] if frame else []
        self.frames.append(rows if moved else None)

    def to_dict(self, codes: MaskCodes, size: tuple[int, int], side: int) -> dict[str, Any] | None:
        """Return `moving` of the format; None without motion."""
        if not any(frame is not None for frame in self.frames):
            return None
        rows = [None if frame is None else [codes.row(*one, side) for one in frame] for frame in self.frames]
        return {"rate": MOVING_RATE, "size": small_size(small_size(size, _MOVING_SIDE), side), "frames": rows}


def record_motion(result: ClipResult, palette: Palette, clip: Clip) -> MotionRecorder:
    """Return the moving masks of a clip without painting an overlay."""
    recorder = MotionRecorder()
    if clip.dense_frames is not None and result.frames:
        masks = MovingMasks([palette.shown(frame) for frame in result.frames], clip)
        for slot in range(int((result.frames[-1].time + 0.5 / clip.fps) * MOVING_RATE)):
            recorder(slot / MOVING_RATE, masks.at((slot + 0.5) / MOVING_RATE))
    return recorder


def player_data(
    result: ClipResult,
    palette: Palette,
    intervals: Sequence[tuple[float, float]],
    end: float,
    moving: MotionRecorder | None = None,
) -> dict[str, Any]:
    """Return the data of a clip's result.

    Args:
        result: of the clip.
        palette: of the clip.
        intervals: start and end of each frame in s.
        end: length of the clip in s.
        moving: the masks between the sampled frames.
    """
    shown = [palette.shown(frame) for frame in result.frames]
    for side in _SIDES:
        codes = MaskCodes()
        segments = [[codes.row(s.phrase, s.score, s.mask, side) for s in frame.segments] for frame in shown]
        motion = moving.to_dict(codes, result.size, side) if moving else None
        if codes.characters <= MAX_CHARACTERS:
            break
    best = max(shown, key=lambda frame: len(frame.segments), default=None)
    frames = [
        {
            "index": frame.index,
            "time": round(frame.time, 3),
            "start": round(start, 3),
            "stop": round(stop, 3),
            "status": status_line(frame),
            "segments": rows,
            "candidates": [_candidate(r, codes) for r in frame.rejected if r.reason == _BELOW and r.box],
        }
        for frame, (start, stop), rows in zip(shown, intervals, segments, strict=True)
    ]
    return {
        "size": result.size,
        "end": round(end, 3),
        "threshold": result.recipe.get("filtering", {}).get("box_threshold"),
        **codes.to_dict(palette),
        "views": [{"title": "", "size": small_size(result.size, side), "frames": frames}],
        "moving": motion,
        "begin": round(best.time, 3) if best is not None and best.segments else 0,
        "images": None,
    }


def _candidate(rejection: Rejection, codes: MaskCodes) -> tuple[str, int | None, float | None, list[float]]:
    box = [round(value, 1) for value in rejection.box or ()]
    return rejection.phrase, codes.find(rejection.phrase), rejection.score and round(rejection.score, 4), box


def player_page(
    data: Mapping[str, Any],
    label: str,
    *,
    id: str | None = None,
    video: str | None = None,
    captions: str | None = None,
    poster: str | None = None,
    mark: str = "",
) -> dict[str, Any]:
    """Return the values of `report/player.html`, which pages with the script `report/player.js` include.

    Args:
        data: of the player.
        label: what it plays, for screen readers.
        id: of the element.
        video: URL of the video without painted masks; None: pictures are played.
        captions: URL of WebVTT captions.
        poster: URL of an image that is shown before the video plays.
        mark: text in the corner of the picture.
    """
    return {
        "data": script_json(data),
        "titles": [view["title"] for view in data["views"]],
        "end": data["end"],
        "has_scores": data["threshold"] is not None,
        "label": label,
        "id": id,
        "video": video,
        "captions": captions,
        "poster": poster,
        "mark": mark,
    }


def script_json(data: Any) -> Markup:
    """Return data as JSON for a script element of HTML, whose end no text of the data can reach."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))
