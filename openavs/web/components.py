"""HTML of the page; the template engine escapes every text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from openavs.media.clip import open_clip
from openavs.models.catalog import is_only_synthetic
from openavs.results.result import Result
from openavs.stages.trackers.iou import link_tracks
from openavs.visualization.colors import palette_of
from openavs.visualization.html import asset, image_data, render
from openavs.visualization.overlay import paint_frame
from openavs.visualization.player import MotionRecorder
from openavs.visualization.report import (
    MAX_ROWS,
    color_css,
    image_rows,
    model_rows,
    object_values,
    player_values,
    report_frames,
    table_values,
    timeline_values,
    timing_rows,
)
from openavs.web import MAX_WORD_LENGTH, STAGES, VIDEOS
from openavs.web.artifacts import BEFORE, CAPTIONS, DOWNLOADS
from openavs.web.inference import InferenceProgress
from openavs.web.session import Run, Session

MAX_IMAGES = 12
MAX_CAPTIONS = 5
MAX_CANDIDATES = 30
MAX_EXAMPLE_SIDE = 640  # pixels
MAX_POSTER_SIDE = 160  # pixels

_STEPS = {
    "load": ("Load the clip and the models", ""),
    "caption": ("Caption the audio", "audio windows"),
    "translate": ("Name the sounding objects", ""),
    "localize": ("Detect and segment", "frames"),
    "write": ("Write the overlay video and the files", ""),
}
_CACHED = {"captioner": "captions", "translator": "prompts", "detector": "boxes"}


def fragment(template: str, /, **values: Any) -> str:
    """Render the template `openavs/assets/web/{template}.html`."""
    return render(f"web/{template}.html", "", **values).decode("utf-8")


def stylesheet() -> str:
    """CSS of the fragments, limited to elements inside `.oa`."""
    return f".oa{{{asset('report/pieces.css')}{color_css()}}}\n{asset('web/page.css')}"


def alert(message: str) -> str:
    """An error message, announced by screen readers."""
    return fragment("alert", message=message)


def progress(state: InferenceProgress, is_written: bool = False) -> str:
    """The steps of a run and its captions; when `is_written`, also its duration and what came from the cache."""
    return fragment(
        "progress",
        steps=_steps(state, is_written),
        captions=state.captions[:MAX_CAPTIONS],
        more=max(0, len(state.captions) - MAX_CAPTIONS),
        is_captioned=state.captions or "localize" in state.steps or state.result is not None,
        done=is_written,
        seconds=state.seconds,
        cached=[_CACHED[stage] for stage in state.cached],
    )


def _steps(state: InferenceProgress, is_written: bool) -> list[dict[str, str]]:
    """Label, count and status (`waiting`, `now` or `done`) of each step."""
    stages = (*STAGES, "write")
    current = max((stages.index(stage) for stage in state.steps), default=0)
    if state.result is not None:
        current = stages.index("write") + is_written
    steps = []
    for position, stage in enumerate(stages):
        done, total = state.steps.get(stage, (0, 0))
        is_done = position < current or (position == current and 0 < total == done)
        status = "done" if is_done else "now" if position == current else "waiting"
        label, unit = _STEPS[stage]
        steps.append({"label": label, "status": status, "count": f"{done} of {total} {unit}" if unit and total else ""})
    return steps


def player(session: Session, run: Run, result: Result, moving: MotionRecorder | None = None) -> tuple[str, str]:
    """The video with its masks, which the browser draws, and these masks alone for a player of the same clip.

    Without `moving`, they stand still between the frames.
    """
    palette = palette_of(result.frames)
    values = player_values(
        result,
        palette,
        timeline_values(result, result.video.audio, palette, result.video.duration)["end"],
        video=file_url(session, VIDEOS, session.video(run).name),
        moving=moving,
        captions=file_url(session, run.number, CAPTIONS),
    )
    values["missing"] = "This browser cannot play the video; its frames are shown instead."
    name = f"{run.number}-{'still' if moving is None else 'moving'}"
    start = max(result.frames, key=lambda frame: len(frame.segments)).time
    html = fragment("player", player=values, clip="/".join(run.request.clip), start=start, name=name)
    return html, fragment("data", data=values["data"], name=name)


def correct(run: Run, result: Result, chosen: int | None = None) -> str:
    """The bar below the player that corrects a result: its objects, and its best rejected candidates.

    Args:
        run: of the result.
        result: with its corrections so far.
        chosen: the track that the next correction is about.
    """
    linked = link_tracks(result)
    palette = palette_of(linked.frames)
    names = {s.track: palette.name(s) for frame in linked.frames for s in frame.segments}
    rejected = [(frame, r) for frame in result.frames for r in frame.rejected if r.box is not None]
    rejected.sort(key=lambda one: -(one[1].score or 0.0))
    candidates = [
        {
            "data": json.dumps({"frame": frame.index, "phrase": r.phrase, "value": r.box}),
            "label": f"{r.phrase}, {frame.time:.1f} s, {r.reason}" + ("" if r.score is None else f" {r.score:.2f}"),
        }
        for frame, r in rejected[:MAX_CANDIDATES]
    ]
    return fragment(
        "correct",
        name=f"{run.number}-{run.edits}",  # Gradio changes elements of the same name in place
        run=run.number,
        objects=sorted(names.items()),
        chosen=chosen,
        candidates=candidates,
        end=result.video.duration or max((frame.time for frame in result.frames), default=0.0),
        letters=MAX_WORD_LENGTH,
        can_undo=(run.folder / BEFORE).exists(),
    )


def poster(result: Result) -> str | None:
    """The frame with the most segments as a small painted image, a data URI; None if nothing was found."""
    best = max(result.frames, key=lambda one: len(one.segments), default=None)
    if best is None or not best.segments:
        return None
    frame = next(iter(result.video.frames(frozenset({best.index}))), None)
    return None if frame is None else str(image_data(paint_frame(frame.image, best), MAX_POSTER_SIDE)["src"])


def example(path: Path) -> str:
    """The first frame of the clip of the example, shown until there is a result."""
    frame = next(iter(open_clip(path, fps=1, id="example").frames(frozenset({0}))))
    return fragment("example", image=image_data(frame.image, MAX_EXAMPLE_SIDE))


def downloads(session: Session, run: Run, result: Result) -> str:
    """Links to the files of a session with their sizes."""
    files = [
        {
            "url": file_url(session, run.number, name),
            "label": label,
            "name": f"{result.clip}-{name}",
            "size": _size((run.folder / name).stat().st_size),
        }
        for name, label in DOWNLOADS.items()
        if (run.folder / name).is_file()
    ]
    return fragment("downloads", files=files)


def details(result: Result) -> str:
    """The sections of the report: objects, timeline, reasons, frames, and how the result was made."""
    palette = palette_of(result.frames)
    clip = result.video
    selected = report_frames(result, MAX_IMAGES)
    return fragment(
        "details",
        s=result,
        only_synthetic=is_only_synthetic(result.models),
        **object_values(result.frames, palette),
        images=image_rows(result.frames, clip.frames(selected), selected, palette),
        listed=(),  # no links within the page: Gradio sets a base address, so they would leave it
        models=model_rows(result.models, result.recipe.get("license")),
        timings=timing_rows(result.timings),
        **table_values(result.frames[:MAX_ROWS]),
        **timeline_values(result, clip.audio, palette, clip.duration),
    )


def history(session: Session) -> str:
    """The results of a session as buttons, the newest first; empty with fewer than two."""
    runs = sorted((run for run in session.runs if run.proposed is not None), key=lambda run: -run.number)
    return fragment("history", runs=runs, shown=session.shown) if len(runs) > 1 else ""


def file_url(session: Session, folder: int | str, name: str) -> str:
    """Address of a file in a folder of a session, relative to the page."""
    return f"results/{session.folder.name}/{folder}/{quote(name)}"


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"
