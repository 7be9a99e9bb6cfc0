"""The HTML report of one clip: a single file that shows what was heard, asked, found and dropped, and why.

It needs no network and runs no script, and says so to the browser (Content-Security-Policy). Texts that come from
models, files and users are all escaped by the template engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePath

import numpy as np

from openavs.models.catalog import is_only_synthetic
from openavs.structures.types import ClipResult, Frame, Waveform
from openavs.utils.fs import atomic_write
from openavs.visualization.colors import palette_of
from openavs.visualization.html import asset, render
from openavs.visualization.report_parts import (
    colour_rules,
    found_rows,
    model_rows,
    picture_parts,
    timeline_parts,
    timing_rows,
    why_parts,
)

PICTURES = 48  # at most so many frames are shown
ROWS = 600  # and so many in the table


def report_frames(segmentation: ClipResult, most: int = PICTURES) -> frozenset[int]:
    """The indices of the frames the report shows: all, or `most` of them spread evenly; decode only these."""
    indices = sorted(frame.index for frame in segmentation.frames)
    if len(indices) <= most:
        return frozenset(indices)
    return frozenset(indices[i] for i in np.linspace(0, len(indices) - 1, most).round().astype(int))


def write_report(
    path: Path,
    segmentation: ClipResult,
    clip_frames: Iterable[Frame],
    audio: Waveform | None = None,
    duration: float | None = None,
) -> None:
    """Writes the report as one HTML file.

    `clip_frames` may be all of the clip's frames or those of `report_frames`; they are taken one at a time. Frames that
    do not come (a truncated file) are left out of the pictures. `duration` is the length of the file in s, if known.
    """
    palette = palette_of(segmentation.frames)
    results = {frame.index: frame for frame in segmentation.frames}
    shown = report_frames(segmentation)
    taken = (frame for frame in clip_frames if frame.index in shown)
    pictures = [picture_parts(frame.image, results[frame.index], palette) for frame in taken]
    style = asset("report/report.css") + asset("report/pieces.css") + colour_rules()
    page = render(
        "report/report.html",
        style,
        s=segmentation,
        source=PurePath(segmentation.source.replace("\\", "/")).name if segmentation.source else None,
        recipe_name=segmentation.recipe.get("name"),
        recipe=json.dumps(segmentation.recipe, indent=2, ensure_ascii=False),
        models=model_rows(segmentation.models, segmentation.recipe.get("license")),
        only_synthetic=is_only_synthetic(segmentation.models),
        pictures=pictures,
        shown=len(shown),
        listed={frame.index for frame in segmentation.frames[:ROWS]},
        found=found_rows(segmentation.frames, palette),
        place=palette.place,
        timings=timing_rows(segmentation.timings),
        **why_parts(segmentation.frames[:ROWS]),
        **timeline_parts(segmentation.frames, audio, palette, duration),
    )
    atomic_write(path, page)
