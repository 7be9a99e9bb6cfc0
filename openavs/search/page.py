"""A page of search results: a picture around each thing that sounds, with its time and a link to the clip's report."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from openavs.errors import InputError
from openavs.exports.base import open_source, read_sources, sampled_fps
from openavs.media.clip import open_clip
from openavs.results.serialization import read_result
from openavs.search.query import Hit, SearchResult, SoundIndex
from openavs.structures.types import Box, ClipResult, ImageArray
from openavs.utils.fs import atomic_write
from openavs.visualization.html import asset, image_data, render
from openavs.visualization.overlay import paint

logger = logging.getLogger(__name__)

NAME = "index.html"
_MARK = b"openavs find</title>"
_WIDTH, _ASPECT = 360, 4 / 3  # of the pictures
_MARGIN = 0.35  # around a box, as a share of it
_LEAST = 0.35  # of the height of the frame, so that a small thing is shown with its surroundings


def write_search_page(out: Path, result: SearchResult, query: str, index: SoundIndex) -> Path:
    """Write `out/index.html`, one file with all pictures, and return its path.

    Args:
        out: a folder, which is made; links to the reports are relative to it.
        result: the hits to show.
        query: the title.
        index: the index that was searched.

    Raises:
        InputError: the folder has an `index.html` of another program.
    """
    path = out.absolute() / NAME
    if path.is_file() and _MARK not in path.read_bytes()[:4000]:
        raise InputError(f"{path} was not written by 'openavs find'; give another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render(
        "report/search.html",
        asset("report/report.css") + asset("report/pieces.css"),
        query=query,
        index=index.path.name,
        clips=index.count("clips"),
        total=result.total,
        several_runs=len({hit.run for hit in result.hits}) > 1,
        hits=[
            {"hit": hit, "link": _link(hit, path.parent), "picture": picture}
            for hit, picture in zip(result.hits, _pictures(result.hits), strict=True)
        ],
    )
    atomic_write(path, page)
    return path


def _link(hit: Hit, folder: Path) -> str | None:
    """Return the address of the frame in the clip's report, relative to a folder; None without a report."""
    report = hit.folder / "report.html"
    if not report.is_file():
        return None
    return f"{quote(Path(os.path.relpath(report, folder)).as_posix())}#f{hit.frame}"


def _pictures(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Return `src`, `width` and `height` of the picture of each hit; empty if its frame cannot be read."""
    pictures: list[dict[str, Any]] = [{}] * len(hits)
    by_clip: dict[Path, list[int]] = {}
    for place, hit in enumerate(hits):
        by_clip.setdefault(hit.folder, []).append(place)
    for folder, places in by_clip.items():
        first = hits[places[0]]
        try:
            result = read_result(first.run, first.clip)
            images = _images(first.run, result, {hits[place].frame: hits[place].time for place in places})
        except InputError as error:
            logger.warning("%s has no pictures: %s", folder, error)
            images = {}
        for place in places:
            image = images.get(hits[place].frame)
            pictures[place] = {} if image is None else image_data(_cut(image, hits[place], result), _WIDTH)
    return pictures


def _images(run: Path, result: ClipResult, times: dict[int, float]) -> dict[int, ImageArray]:
    """Return frames of a clip by index: of its source or, if that is gone, of the overlay video.

    Raises:
        InputError: neither can be read.
    """
    try:
        clip = open_source(result, read_sources(run).root)
        return {frame.index: frame.image for frame in clip.frames(frozenset(times))}
    except InputError:
        overlay = run / "clips" / result.clip / "overlay.mp4"
        if not overlay.is_file():
            raise
        clip = open_clip(overlay, fps=sampled_fps(result))
        nearest = {min(range(len(clip.times)), key=lambda i: abs(clip.times[i] - at)): own for own, at in times.items()}
        return {nearest[frame.index]: frame.image for frame in clip.frames(frozenset(nearest))}


def _cut(image: ImageArray, hit: Hit, result: ClipResult) -> ImageArray:
    """Return the part of a frame around the hit's thing, with its mask; the whole frame for a sound without one."""
    if hit.box is None:
        return image
    segments = [s for frame in result.frames if frame.index == hit.frame for s in frame.segments if s.box == hit.box]
    painted = paint(image, [replace(segment, phrase="") for segment in segments[:1]])  # the mask, without a name
    x0, y0, x1, y1 = crop_window(hit.box, (image.shape[0], image.shape[1]))
    return painted[y0:y1, x0:x1]


def crop_window(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a window around a box, x0, y0, x1, y1 in pixels, inside an image of (height, width).

    It has the shape of the pictures, 4:3, as far as the image allows it.
    """
    height, width = size
    x0, y0, x1, y1 = box
    tall = max((y1 - y0) * (1 + 2 * _MARGIN), (x1 - x0) * (1 + 2 * _MARGIN) / _ASPECT, height * _LEAST)
    high, wide = (max(1, min(round(own), limit)) for own, limit in ((tall, height), (tall * _ASPECT, width)))
    left = min(max(round((x0 + x1 - wide) / 2), 0), width - wide)
    top = min(max(round((y0 + y1 - high) / 2), 0), height - high)
    return left, top, left + wide, top + high
