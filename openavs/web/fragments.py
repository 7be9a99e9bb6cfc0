"""The pieces of HTML that the page shows; every text from outside is escaped by the template engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from openavs.models.catalog import is_only_synthetic
from openavs.results.result import Result
from openavs.structures.types import ClipResult
from openavs.visualization.colors import palette_of
from openavs.visualization.html import asset, render
from openavs.visualization.report import (
    MAX_ROWS,
    color_css,
    found_rows,
    image_values,
    model_rows,
    report_frames,
    table_values,
    timeline_values,
    timing_rows,
)
from openavs.web.menu import RecipeOption
from openavs.web.products import DOWNLOADS
from openavs.web.running import STAGES, InferenceProgress
from openavs.web.sessions import Session

PICTURES = 12
MOST_HEARD = 5

_SAYS = {
    "load": ("Open the clip and the models", ""),
    "caption": ("Listen", "windows of sound"),
    "translate": ("Ask what makes these sounds", ""),
    "localize": ("Look for it", "frames"),
    "paint": ("Paint the video and write the files", ""),
}
_REUSED = {"captioner": "heard", "translator": "asked for", "detector": "boxed"}


@dataclass(frozen=True)
class ProgressStep:
    """One line of the progress: `state` is `waiting`, `now` or `done`."""

    says: str
    state: str
    count: str = ""


def style() -> str:
    """The style sheet of the pieces, which touches nothing else of the page."""
    return f".oa{{{asset('report/pieces.css')}{color_css()}}}\n{asset('web/page.css')}"


def progress(standing: InferenceProgress, painted: bool = False) -> str:
    """The stages, what was heard as soon as that is known, and at the end how long it took and what was reused."""
    return _html(
        "web/progress.html",
        steps=_steps(standing, painted),
        heard=standing.captions[:MOST_HEARD],
        more=max(0, len(standing.captions) - MOST_HEARD),
        knows=standing.captions or "localize" in standing.steps or standing.result is not None,
        done=painted,
        seconds=standing.seconds,
        reused=[_REUSED[stage] for stage in standing.reused],
    )


def _steps(standing: InferenceProgress, painted: bool) -> list[ProgressStep]:
    stages = (*STAGES, "paint")
    reached = max((stages.index(stage) for stage in standing.steps), default=0)
    if standing.result is not None:
        reached = stages.index("paint") + painted
    steps = []
    for place, stage in enumerate(stages):
        done, total = standing.steps.get(stage, (0, 0))
        state = "done" if place < reached or (place == reached and 0 < total == done) else "waiting"
        if place == reached and state != "done":
            state = "now"
        says, what = _SAYS[stage]
        steps.append(ProgressStep(says, state, f"{done} of {total} {what}" if what and total else ""))
    return steps


def alert(sentence: str) -> str:
    """An error, said at once by a screen reader."""
    return _html("web/alert.html", sentence=sentence)


def player(session: Session, result: Result, path_name: str, shown: ClipResult | None = None) -> str:
    """The painted video with its sound, and with what was heard as captions that can be switched on.

    `shown` is what of the result is painted, None for all. Before it plays stands the frame with the most on it.
    """
    shown = shown or result
    names = ", ".join(dict.fromkeys(segment.phrase for frame in shown.frames for segment in frame.segments))
    return _html(
        "web/player.html",
        src=address(session, path_name),
        captions=address(session, "heard.vtt"),
        clip=result.clip,
        names=names,
        poster=_poster(result, shown),
        width=result.size[1],
        height=result.size[0],
    )


def _poster(result: Result, shown: ClipResult) -> str | None:
    fullest = max(shown.frames, key=lambda frame: len(frame.segments), default=None)
    if fullest is None or not fullest.segments:
        return None
    palette = palette_of(result.frames)
    picture = next(iter(result.video.frames(frozenset({fullest.index}))), None)
    return None if picture is None else str(image_values(picture.image, fullest, palette)["src"])


def downloads(session: Session) -> str:
    """Links to the files, with their sizes."""
    files = [
        {"href": address(session, name), "says": says, "name": session.called(name), "size": _size(path)}
        for name, says in DOWNLOADS.items()
        if (path := session.file(name)) is not None
    ]
    return _html("web/downloads.html", files=files)


def details(result: Result) -> str:
    """What sounds, when, frame by frame and why, and how it was made: the parts of the report."""
    palette = palette_of(result.frames)
    clip = result.video
    shown = report_frames(result, PICTURES)
    results = {frame.index: frame for frame in result.frames}
    taken = (frame for frame in clip.frames(shown) if frame.index in shown)
    return _html(
        "web/details.html",
        s=result,
        only_synthetic=is_only_synthetic(result.models),
        found=found_rows(result.frames, palette),
        color=palette.index,
        images=[image_values(frame.image, results[frame.index], palette) for frame in taken],
        listed=(),  # a link within the page would leave it: Gradio sets a base address
        models=model_rows(result.models, result.recipe.get("license")),
        timings=timing_rows(result.timings),
        **table_values(result.frames[:MAX_ROWS]),
        **timeline_values(result.frames, clip.audio, palette, clip.duration),
    )


def about(offers: Mapping[str, RecipeOption], loaded: Iterable[str]) -> str:
    """The recipes on offer, their models, licenses, and which of them are in memory."""
    return _html("web/about.html", offers=list(offers.values()), loaded=set(loaded))


def recipe_note(offer: RecipeOption) -> str:
    """What a visitor should know of a recipe before using it."""
    return _html("web/recipe.html", offer=offer)


def welcome() -> str:
    """What stands where the answer will be."""
    return _html("web/welcome.html")


def stopped() -> str:
    """After Stop."""
    return _html("web/stopped.html")


def head(limits: str) -> str:
    """The top of the page."""
    return _html("web/head.html", limits=limits)


def address(session: Session, name: str) -> str:
    """Where a file of a visit is served, seen from the page; every run has its own, so no old one is shown."""
    return f"results/{session.token}/{quote(name)}?run={session.runs}"


def _html(template: str, **values: Any) -> str:
    return render(template, "", **values).decode("utf-8")


def _size(path: Any) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"
