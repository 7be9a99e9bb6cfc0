"""`index.html` of a result folder with several clips: one table with pictures and links to the reports."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Collection
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from openavs.errors import InputError
from openavs.media.clip import open_clip
from openavs.models.catalog import is_only_synthetic
from openavs.results.serialization import clip_folder, read_result
from openavs.structures.types import ClipResult
from openavs.utils.fs import atomic_write
from openavs.visualization.html import asset, image_data, render
from openavs.visualization.reasons import best_captions, caption_text, remedy_text

logger = logging.getLogger(__name__)

NAME = "index.html"
MAX_ROWS = 1000
MAX_IMAGES = 200  # clips with a picture
MAX_TEXTS = 4  # captions, and phrases, of a clip
_WIDTH = 200  # pixels of a picture
_MARK = b"openavs run</title>"
_IMAGE = re.compile(r'<img src="(data:[^"]+)" width="(\d+)" height="(\d+)" data-clip="([^"]+)"')


def write_run_page(out: Path, changed: Collection[str] | None = None) -> Path | None:
    """Write the page of a result folder from its index and results; returns its path.

    With `changed`, only the pictures of these clips are made again. None if the folder has fewer than two clips, or a
    file of that name that openavs did not write.
    """
    path = out / NAME
    rows = [json.loads(line) for line in (out / "index.jsonl").read_text("utf-8").splitlines()]
    if len(rows) < 2:
        return None
    before = path.read_bytes() if path.is_file() else b""
    if before and _MARK not in before[:4000]:
        logger.warning("%s was not written by openavs and is kept; the page of the run is not written", path)
        return None
    results: list[ClipResult] = []
    pictures = {} if changed is None else _pictures_of(before.decode("utf-8"), changed)
    shown = [_row(out, row, results) for row in rows[:MAX_ROWS]]
    for values in shown[:MAX_IMAGES]:
        if values["overlay"] is not None:
            values |= pictures.get(values["clip"]) or _picture(out, values["clip"], values["best"])
    counts = Counter(row["state"] for row in shown)
    page = render(
        "report/run.html",
        asset("report/report.css") + asset("report/pieces.css"),
        name=out.name,
        recipe_name=results[0].recipe.get("name") if results else None,
        only_synthetic=bool(results) and is_only_synthetic(results[0].models),
        total=len(rows),
        counts={state: counts[state] for state in ("found", "nothing found", "failed")},
        rows=shown,
    )
    atomic_write(path, page)
    return path


def _pictures_of(page: str, changed: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the pictures of a page by clip, without those of the changed clips."""
    found = {unescape(clip): (src, int(width), int(height)) for src, width, height, clip in _IMAGE.findall(page)}
    names = ("src", "width", "height")
    return {clip: dict(zip(names, of_clip, strict=True)) for clip, of_clip in found.items() if clip not in changed}


def _row(out: Path, row: dict[str, Any], results: list[ClipResult]) -> dict[str, Any]:
    """Return the values of a clip's row; its result is appended to `results` for its recipe and models."""
    clip = row["id"]
    values: dict[str, Any] = {"clip": clip, "src": None, "link": None, "overlay": None, "remedy": None}
    if row["status"] == "failed":
        return values | {"state": "failed", "reason": row["detail"], "captions": [], "found": [], "warnings": 0}
    result = read_result(out, clip)
    if not results:
        results.append(result)
    scores: dict[str, float] = {}
    for frame in result.frames:
        for segment in frame.segments:
            scores[segment.phrase] = max(scores.get(segment.phrase, 0.0), segment.score)
    ranked = sorted(scores, key=lambda phrase: -scores[phrase])
    captions = best_captions(caption for frame in result.frames for caption in frame.captions)
    files = {
        name: f"clips/{quote(clip)}/{name}"
        for name in ("report.html", "overlay.mp4")
        if (clip_folder(out, clip) / name).is_file()
    }
    values |= {
        "state": "found" if ranked else "nothing found",
        "link": files.get("report.html"),
        "overlay": files.get("overlay.mp4"),
        "captions": [caption_text(caption) for caption in captions[:MAX_TEXTS]],
        "found": [f"{phrase} {scores[phrase]:.2f}" for phrase in ranked[:MAX_TEXTS]],
        "remedy": remedy_text(result.frames),
        "warnings": len(result.warnings),
    }
    best = max(result.frames, key=lambda frame: len(frame.segments), default=None)
    return values | {"best": best.time if best else 0.0}


def _picture(out: Path, clip: str, time: float) -> dict[str, Any]:
    """Return the frame of the overlay at a time; nothing if it cannot be decoded."""
    try:
        overlay = open_clip(clip_folder(out, clip) / "overlay.mp4", fps=2.0)
        number = min(range(len(overlay.times)), key=lambda i: abs(overlay.times[i] - time))
        frame = next(iter(overlay.frames(frozenset({number}))), None)
    except InputError as error:
        logger.info("%s has no picture: %s", clip, error)
        return {}
    return {} if frame is None else image_data(frame.image, _WIDTH)
