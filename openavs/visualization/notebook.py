"""What a notebook shows of a result: one piece of HTML with its pictures or video in it, and nothing from elsewhere."""

from __future__ import annotations

import base64
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pictures

from openavs.errors import InputError
from openavs.media import write_overlay
from openavs.models.catalog import is_only_synthetic
from openavs.structures.types import Clip, ClipResult, Frame, FrameResult
from openavs.visualization.colors import Palette, palette_of
from openavs.visualization.html import jpeg_address, render
from openavs.visualization.overlay import OverlayPainter, paint_frame

PICTURES = 4
PICTURE_WIDTH = 240  # pixels
MOST_TEXTS = 12
_PAGE = "<!doctype html><meta charset='utf-8'><title>openavs</title>{}"


@dataclass(frozen=True)
class NotebookView:
    """HTML that a notebook displays when it is the last value of a cell; elsewhere use `display(view)`."""

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def save(self, path: str | Path) -> None:
        """Writes it as a page of its own, to be opened in a browser."""
        Path(path).write_text(_PAGE.format(self.html), encoding="utf-8")

    def __repr__(self) -> str:
        return f"<View of {len(self.html)} characters of HTML; .save(path) writes it as a page>"


def show(result: ClipResult, clip: Clip, *, width: int, most_seconds: float, most_bytes: int) -> NotebookView:
    """The video with its sound and the masks painted on, within these bounds; see `Result.show`."""
    lasts = (clip.times[-1] if clip.times else 0.0) + 0.5 / clip.fps
    if lasts > most_seconds:
        why = f"The video lasts {lasts:.0f} s, too long to be put into a page: result.save(folder) writes overlay.mp4."
        return NotebookView(_html(result, pictures=_pictures(result, clip), why=why))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overlay.mp4"
        write_overlay(path, clip, OverlayPainter(result), size_limit=width)
        size = path.stat().st_size
        if size <= most_bytes:
            code = base64.b64encode(path.read_bytes()).decode("ascii")
            return NotebookView(_html(result, video=f"data:video/mp4;base64,{code}"))
    why = f"The video takes {size / 1e6:.1f} MB, too much for a page: result.save(folder) writes overlay.mp4."
    return NotebookView(_html(result, pictures=_pictures(result, clip), why=why))


def summary(result: ClipResult, clip: Clip | None) -> str:
    """A few pictures, if the clip is at hand, and what was heard, found and dropped."""
    if clip is None:
        return _html(result)
    try:
        return _html(result, pictures=_pictures(result, clip))
    except InputError as problem:  # the file is gone by now: the words are still true
        return _html(result, why=f"There are no pictures: {problem}.")


def _html(
    result: ClipResult, *, video: str | None = None, pictures: list[dict[str, Any]] | None = None, why: str = ""
) -> str:
    palette = palette_of(result.frames)
    page = render(
        "notebook/result.html",
        "",
        s=result,
        recipe_name=result.recipe.get("name"),
        video=video,
        why_no_video=why,
        pictures=pictures or [],
        heard=list(_heard(result))[:MOST_TEXTS],
        found=list(_found(result, palette))[:MOST_TEXTS],
        dropped=list(_dropped(result))[:MOST_TEXTS],
        only_synthetic=is_only_synthetic(result.models),
    )
    return page.decode("utf-8")


def _pictures(result: ClipResult, clip: Clip) -> list[dict[str, Any]]:
    """Painted frames spread over the clip, rather those in which something was found."""
    frames = [frame for frame in result.frames if frame.segments] or list(result.frames)
    places = np.linspace(0, len(frames) - 1, min(PICTURES, len(frames))).round().astype(int)
    chosen = {frames[place].index: frames[place] for place in places}
    palette = palette_of(result.frames)
    return [_picture(frame, chosen[frame.index], palette) for frame in clip.frames(frozenset(chosen))]


def _picture(frame: Frame, found: FrameResult, palette: Palette) -> dict[str, Any]:
    scale = min(1.0, PICTURE_WIDTH / frame.image.shape[1])
    size = (max(1, round(frame.image.shape[1] * scale)), max(1, round(frame.image.shape[0] * scale)))
    small = Pictures.fromarray(paint_frame(frame.image, found, palette)).resize(size, Pictures.Resampling.BILINEAR)
    names = ", ".join(dict.fromkeys(segment.phrase for segment in found.segments)) or "nothing found"
    alt = f"Frame at {found.time:.1f} s: {names}"
    return {"src": jpeg_address(np.asarray(small)), "alt": alt, "time": found.time, "width": size[0], "height": size[1]}


def _heard(result: ClipResult) -> Iterator[dict[str, Any]]:
    best: dict[str, float | None] = {}
    for caption in (caption for frame in result.frames for caption in frame.captions):
        known = best.get(caption.text)
        best[caption.text] = caption.score if known is None else max(known, caption.score or 0.0)
    for text in sorted(best, key=lambda text: -(best[text] or 0.0)):
        yield {"text": text, "score": best[text]}


def _found(result: ClipResult, palette: Palette) -> Iterator[dict[str, Any]]:
    for phrase in palette.phrases:
        scores = [[s.score for s in frame.segments if s.phrase == phrase] for frame in result.frames]
        best = max(score for own in scores for score in own)
        yield {"text": phrase, "frames": sum(map(bool, scores)), "score": best, "colour": palette[phrase]}


def _dropped(result: ClipResult) -> Iterator[dict[str, Any]]:
    reasons = Counter(
        said for frame in result.frames for said in {(drop.phrase, drop.reason) for drop in frame.rejected}
    )
    for (phrase, reason), frames in reasons.most_common():
        yield {"text": phrase, "reason": reason, "frames": frames}
