"""HTML views of a result for notebooks, with images or the video embedded."""

from __future__ import annotations

import base64
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openavs.errors import InputError
from openavs.media.remux import write_overlay
from openavs.models.catalog import is_only_synthetic
from openavs.structures.types import Clip, ClipResult, Frame, FrameResult
from openavs.visualization.colors import Palette, palette_of
from openavs.visualization.html import image_data, render
from openavs.visualization.overlay import OverlayPainter, paint_frame
from openavs.visualization.reasons import reason_text
from openavs.visualization.report import found_rows

MAX_IMAGES = 4
MAX_TEXTS = 12
IMAGE_SIDE = 240  # pixels of the longer side
_PAGE = "<!doctype html><meta charset='utf-8'><title>openavs</title>{}"


@dataclass(frozen=True)
class NotebookView:
    """HTML that a notebook shows for the last value of a cell; elsewhere, use `display(view)`."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def save(self, path: str | Path) -> None:
        """Write a page for a browser."""
        Path(path).write_text(_PAGE.format(self.html), encoding="utf-8")

    def __repr__(self) -> str:
        return f"<NotebookView of {len(self.html)} characters of HTML; .save(path) writes it as a page>"


def show(result: ClipResult, clip: Clip, *, width: int, max_seconds: float, max_bytes: int) -> NotebookView:
    """Return a view of the overlay video, or of images if it exceeds the limits."""
    duration = (clip.times[-1] if clip.times else 0.0) + 0.5 / clip.fps
    if duration > max_seconds:
        note = f"The video lasts {duration:.0f} s, too long for a page: result.save(folder) writes overlay.mp4."
        return NotebookView(_html(result, images=_images(result, clip), note=note))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overlay.mp4"
        write_overlay(path, clip, OverlayPainter(result, clip=clip), size_limit=width)
        size = path.stat().st_size
        if size <= max_bytes:
            code = base64.b64encode(path.read_bytes()).decode("ascii")
            return NotebookView(_html(result, video=f"data:video/mp4;base64,{code}"))
    note = f"The video has {size / 1e6:.1f} MB, too much for a page: result.save(folder) writes overlay.mp4."
    return NotebookView(_html(result, images=_images(result, clip), note=note))


def summary(result: ClipResult, clip: Clip | None) -> str:
    """Return sounds or captions, phrases, rejections and, with the clip, a few frames as HTML."""
    if clip is None:
        return _html(result)
    try:
        return _html(result, images=_images(result, clip))
    except InputError as error:  # the file was removed; the result is still valid
        return _html(result, note=f"No images: {error}.")


def _html(
    result: ClipResult, *, video: str | None = None, images: list[dict[str, Any]] | None = None, note: str = ""
) -> str:
    palette = palette_of(result.frames)
    found = found_rows(result.frames, palette)[:MAX_TEXTS]
    page = render(
        "notebook/result.html",
        "",
        s=result,
        recipe_name=result.recipe.get("name"),
        video=video,
        note=note,
        images=images or [],
        captions=_captions(result)[:MAX_TEXTS],
        found=[row | {"color": palette[row["phrase"]]} for row in found],
        rejected=_rejections(result).most_common(MAX_TEXTS),
        only_synthetic=is_only_synthetic(result.models),
    )
    return page.decode("utf-8")


def _images(result: ClipResult, clip: Clip) -> list[dict[str, Any]]:
    """Painted frames at equal distances, preferably frames with segments."""
    frames = [frame for frame in result.frames if frame.segments] or list(result.frames)
    places = np.linspace(0, len(frames) - 1, min(MAX_IMAGES, len(frames))).round().astype(int)
    chosen = {frames[place].index: frames[place] for place in places}
    palette = palette_of(result.frames)
    return [_image(frame, chosen[frame.index], palette) for frame in clip.frames(frozenset(chosen))]


def _image(frame: Frame, result: FrameResult, palette: Palette) -> dict[str, Any]:
    names = ", ".join(dict.fromkeys(map(palette.name, result.segments))) or "nothing found"
    picture = image_data(paint_frame(frame.image, result, palette), IMAGE_SIDE)
    return picture | {"alt": f"Frame at {result.time:.1f} s: {names}", "time": result.time}


def _captions(result: ClipResult) -> list[tuple[str, float | None]]:
    """Each event with its times, by onset; without events, each caption with its best score, best first."""
    if result.events:
        return [(f"{e.phrase} {e.onset:.2f} to {e.offset:.2f} s", e.score) for e in result.events]
    best: dict[str, float | None] = {}
    for caption in (caption for frame in result.frames for caption in frame.captions):
        known = best.get(caption.text)
        best[caption.text] = caption.score if known is None else max(known, caption.score or 0.0)
    return sorted(best.items(), key=lambda item: -(item[1] or 0.0))


def _rejections(result: ClipResult) -> Counter[tuple[str, str]]:
    """The number of frames of each rejected phrase and reason with its sentence."""
    keys = ({(r.phrase, reason_text(r)): None for r in frame.rejected} for frame in result.frames)
    return Counter(key for own in keys for key in own)
